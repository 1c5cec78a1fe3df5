//! Verdicts in words, for people.

use std::fmt;

use super::{ClusterRuleRef, Judgement, Path, RuleRef, Verdict};
use crate::model::NetworkPolicy;

/// `allowed: egress ...; ingress ...` or `denied: ...`, on one line.
impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_allowed() {
            "allowed"
        } else {
            "denied"
        };
        write!(f, "{word} ({})", self.path)?;
        for (name, side) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            if *side != Judgement::Exempt {
                write!(f, "; {name} of {side}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PodToPod => "pod to pod",
            Self::PodToNode => "pod to this node, egress judged",
            Self::PodToOutside => "pod to outside",
            Self::NodeToPod => "this node to pod, exempt from policy",
            Self::OutsideToPod => "outside to pod",
            Self::PodToItself => "pod to itself, exempt from NetworkPolicy",
            Self::NoPod => "no pod takes part",
        })
    }
}

impl fmt::Display for Judgement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exempt => f.write_str("nobody judged"),
            Self::NotIsolated { pod } => write!(f, "{pod} not isolated"),
            Self::Allowed { pod, by, .. } => write!(f, "{pod} allowed by {by}"),
            Self::Accepted { pod, by } => write!(f, "{pod} allowed by {by}"),
            Self::Refused { pod, by } => write!(f, "{pod} denied by {by}"),
            Self::Unknown { pod } => {
                write!(f, "{pod} denied: Namespace {} is not known", pod.namespace)
            }
            Self::Denied { pod, isolating } => {
                write!(
                    f,
                    "{pod} denied: isolated by {}, no rule matches",
                    Names(isolating)
                )
            }
        }
    }
}

impl fmt::Display for RuleRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} spec.{}[{}]",
            self.policy.key, self.direction, self.rule
        )
    }
}

/// `Admin quarantine spec.ingress[0] (no-lab)`
impl fmt::Display for ClusterRuleRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (policy, direction, index) = (self.policy, self.direction, self.index);
        write!(
            f,
            "{} {} spec.{direction}[{index}]",
            policy.tier, policy.name
        )?;
        match self.rule.name.as_str() {
            "" => Ok(()),
            name => write!(f, " ({name})"),
        }
    }
}

/// Policy keys, comma-separated.
struct Names<'a>(&'a [&'a NetworkPolicy]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, policy) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{}", policy.key)?;
        }
        Ok(())
    }
}
