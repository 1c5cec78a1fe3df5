//! Explanations in words, for people.

use std::fmt;

use super::{Connection, Decision, Explanation, KernelCheck, Outcome, ServiceStep, Side};

impl fmt::Display for Explanation {
    /// Some lines, without a final line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}: {}", self.from, self.to, self.outcome)?;
        for note in &self.notes {
            write!(f, "\nnote: {note}")?;
        }
        for connection in &self.connections {
            write!(f, "\n\n{connection}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "DENIED",
            Self::Partly => "partly allowed",
            Self::Disagreement => "THE KERNEL DISAGREES, run `trammel-agent verify`",
        })
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.allowed { "allowed" } else { "DENIED" };
        write!(f, "{word}  {}", self.source)?;
        if let Some(service) = &self.service {
            write!(f, " -> {}", service.frontend)?;
        }
        if let Some(destination) = self.destination {
            write!(f, " -> {destination}")?;
        }
        if let Some(to) = &self.to {
            write!(f, " ({to})")?;
        }
        write!(f, "  {}\n  path     {}", self.ports, self.path)?;
        if let Some(service) = &self.service {
            write!(f, "\n  service  {service}")?;
        }
        for (name, side) in [("egress ", &self.egress), ("ingress", &self.ingress)] {
            if let Some(side) = side {
                write!(f, "\n  {name}  {side}")?;
            }
        }
        write!(f, "\n  kernel   {}", self.kernel)
    }
}

impl fmt::Display for ServiceStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.service, self.how)?;
        match self.slot {
            Some(slot) => write!(f, "; endpoint {} of {}", slot + 1, self.slots),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.pod)?;
        match self.decision {
            Decision::NotIsolated => f.write_str("is not isolated")?,
            Decision::Allowed => f.write_str("allows it")?,
            Decision::Denied => f.write_str("does not allow it")?,
            Decision::Closed => f.write_str("is closed: its Pod object is not known yet")?,
            Decision::NoNamespace => {
                f.write_str("is closed: its Namespace object is not known yet")?;
            }
            Decision::NotEnforced => {
                let interface = self.reached_by.as_deref().unwrap_or("another interface");
                write!(
                    f,
                    "is no pod of this agent: no policy is enforced on what goes by {interface}, \
                     an interface of another plugin"
                )?;
                if !self.isolated_by.is_empty() {
                    let policies = self.isolated_by.join(", ");
                    write!(f, "\n           selected in vain by {policies}")?;
                }
            }
        }
        if let Some(by) = &self.by {
            write!(f, " by {} {}\n           {}", by.policy, by.field, by.text)?;
        }
        if !self.isolated_by.is_empty() && self.decision == Decision::Denied {
            write!(
                f,
                "\n           isolated by {}",
                self.isolated_by.join(", ")
            )?;
        }
        if let Some(near) = &self.nearest {
            let rule = &near.rule;
            write!(
                f,
                "\n           nearest: {} {}: {}",
                rule.policy, rule.field, rule.text
            )?;
            for why in &near.why {
                write!(f, "\n             but {why}")?;
            }
        }
        if self.audit_would_deny {
            write!(
                f,
                "\n           on audit, would be denied by {}",
                self.would_be_denied_by.join(", ")
            )?;
        }
        match &self.decided_on {
            Some(node) => write!(f, "\n           decided by the agent of node {node}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for KernelCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fate, steps) = match self {
            Self::Skipped { reason } => return write!(f, "not checked: {reason}"),
            Self::Agrees { fate, steps } => {
                write!(f, "agrees: {fate}")?;
                (fate, steps)
            }
            Self::Disagrees {
                expected,
                fate,
                steps,
            } => {
                write!(f, "DISAGREES: should be {expected}, but is {fate}")?;
                (fate, steps)
            }
        };
        match steps.last() {
            Some(step) if fate != "passes" => write!(f, " at {step}"),
            _ => Ok(()),
        }
    }
}
