//! The capability `bandwidth`: rates in bits a second, bursts in bits.

use dataplane::attachment::{Bandwidth, Rate};
use serde_json::Value;

use super::error::Error;
use super::json::Object;

/// The bursts that runtimes send where a pod has annotations for rates: there is none for a
/// burst, and they fill in the largest number that they take for one. containerd's has 32
/// bits, CRI-O's as many bytes, of which newer releases take a bit away, and dockershim's was
/// an `int32`. A bucket of that size would let half a gigabyte through before it limits.
const NO_BURST_SAID: [u64; 4] = {
    let containerd = u32::MAX as u64;
    let cri_o = containerd * 8;
    [containerd, cri_o - 1, cri_o, i32::MAX as u64]
};

/// The limits. Those of the configuration itself go before the runtime's, as in the
/// reference plugin: an operator's limit is not lifted by a pod's annotation.
pub fn bandwidth(
    root: &Object<'_>,
    runtime: Option<&Object<'_>>,
) -> Result<Option<Bandwidth>, Error> {
    for key in ["unshapedSubnets", "shapedSubnets"] {
        if !root.array(key)?.is_empty() {
            let value = root.value(key).unwrap_or(&Value::Null);
            let advice = "all of a pod's traffic has the same limit; leave it out";
            return Err(Error::unsupported(key, value, advice));
        }
    }
    let own = limits(root)?;
    if own.is_some() {
        return Ok(own);
    }
    let runtime = runtime.map(|runtime| runtime.object("bandwidth"));
    match runtime.transpose()?.flatten() {
        Some(bandwidth) => limits(&bandwidth),
        None => Ok(None),
    }
}

fn limits(object: &Object<'_>) -> Result<Option<Bandwidth>, Error> {
    let bandwidth = Bandwidth {
        ingress: rate(object, "ingressRate", "ingressBurst")?,
        egress: rate(object, "egressRate", "egressBurst")?,
    };
    Ok((bandwidth != Bandwidth::default()).then_some(bandwidth))
}

fn rate(object: &Object<'_>, rate: &str, burst: &str) -> Result<Option<Rate>, Error> {
    let rate_bits = object.large_number(rate)?.unwrap_or(0);
    let burst_bits = object.large_number(burst)?.unwrap_or(0);
    let (rate, burst) = (object.path(rate), object.path(burst));
    match (rate_bits, burst_bits) {
        (0, 0) => return Ok(None),
        (0, _) => {
            return Err(Error::config(format!(
                "{rate}: missing, but {burst} is {burst_bits}: give both or none"
            )));
        }
        (_, 0) => {
            return Err(Error::config(format!(
                "{burst}: missing, but {rate} is {rate_bits}: give both or none"
            )));
        }
        (1..8, _) => {
            return Err(Error::config(format!(
                "{rate}: {rate_bits} is less than a byte a second: it is in bits a second"
            )));
        }
        _ => {}
    }
    let bytes = rate_bits / 8;
    let burst = match u32::try_from(burst_bits / 8) {
        _ if NO_BURST_SAID.contains(&burst_bits) => default_burst(bytes),
        Ok(burst) => burst,
        Err(_) => {
            return Err(Error::config(format!(
                "{burst}: {burst_bits} bits are more than 4 GiB"
            )));
        }
    };
    Ok(Some(Rate { rate: bytes, burst }))
}

/// What passes in 25 milliseconds, and at least ten packets: a bucket that holds less than
/// arrives at once, after the sender was scheduled late, costs throughput.
fn default_burst(rate: u64) -> u32 {
    const PACKETS: u64 = 10 * 1514;
    u32::try_from((rate / 40).max(PACKETS)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::error::Code;
    use crate::spec::json::parse;

    fn read(conf: &Value) -> Result<Option<Bandwidth>, Error> {
        let value = parse(conf.to_string().as_bytes())?;
        let root = Object::root(value.as_object().unwrap());
        bandwidth(&root, root.object("runtimeConfig")?.as_ref())
    }

    fn of_runtime(limits: &Value) -> Result<Option<Bandwidth>, Error> {
        read(&json!({"runtimeConfig": {"bandwidth": limits}}))
    }

    const fn rate(rate: u64, burst: u32) -> Rate {
        Rate { rate, burst }
    }

    /// cni.md 13: go-cni's structures have no JSON tags.
    #[test]
    fn bits_become_bytes_in_any_spelling() {
        let expected = Bandwidth {
            ingress: Some(rate(1_000_000, 100_000)),
            egress: Some(rate(2_000_000, 50_000)),
        };
        for conf in [
            json!({"RuntimeConfig": {"bandWidth": {
                "IngressRate": 8_000_000, "IngressBurst": 800_000,
                "EgressRate": 16_000_000, "EgressBurst": 400_000}}}),
            json!({"runtimeConfig": {"bandwidth": {
                "ingressRate": 8_000_000, "ingressBurst": 800_000,
                "egressRate": 16_000_000, "egressBurst": 400_000}}}),
        ] {
            assert_eq!(read(&conf).unwrap(), Some(expected), "{conf}");
        }
        assert_eq!(of_runtime(&json!({})).unwrap(), None);
        assert_eq!(of_runtime(&json!(null)).unwrap(), None);
        let one = of_runtime(&json!({"egressRate": 8, "egressBurst": 8}));
        assert_eq!(
            one.unwrap().unwrap(),
            Bandwidth {
                ingress: None,
                egress: Some(rate(1, 1))
            }
        );
    }

    #[test]
    fn the_operators_limit_goes_before_the_pods() {
        let conf = json!({
            "egressRate": 8000, "egressBurst": 80_000,
            "runtimeConfig": {"bandwidth": {"egressRate": 16_000, "egressBurst": 16_000}},
        });
        let found = read(&conf).unwrap().unwrap();
        assert_eq!(found.egress, Some(rate(1000, 10_000)));
    }

    #[test]
    fn a_burst_that_nobody_asked_for_is_25_milliseconds_or_ten_packets() {
        // What containerd, two releases of CRI-O and dockershim say.
        for unsaid in [
            4_294_967_295_u64,
            34_359_738_359,
            34_359_738_360,
            2_147_483_647,
        ] {
            let burst = |bits: u64| {
                let limits = json!({"ingressRate": bits, "ingressBurst": unsaid});
                let found = of_runtime(&limits).unwrap().unwrap();
                found.ingress.unwrap().burst
            };
            assert_eq!(burst(1_000_000_000), 3_125_000);
            assert_eq!(burst(1_000_000), 15_140);
            assert_eq!(burst(u64::MAX), u32::MAX);
        }
        let said = of_runtime(&json!({"ingressRate": 8, "ingressBurst": 4_294_967_288_u64}));
        assert_eq!(said.unwrap().unwrap().ingress, Some(rate(1, 536_870_911)));
    }

    #[test]
    fn contradictions_and_impossible_values_are_refused() {
        for (limits, key) in [
            (json!({"ingressRate": 1000}), "ingressBurst"),
            (json!({"ingressBurst": 1000}), "ingressRate"),
            (
                json!({"egressRate": 7, "egressBurst": 1000}),
                "egressRate: 7",
            ),
            (
                json!({"egressRate": 80, "egressBurst": 1u64 << 40}),
                "egressBurst: 1099511627776",
            ),
            (json!({"egressRate": -1, "egressBurst": 8}), "egressRate"),
            (json!({"egressRate": "1M", "egressBurst": 8}), "egressRate"),
        ] {
            let error = of_runtime(&limits).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{limits}");
            let key = format!("runtimeConfig.bandwidth.{key}");
            assert!(error.message.starts_with(&key), "{error}");
        }
        for key in ["unshapedSubnets", "shapedSubnets"] {
            let error = read(&json!({key: ["10.0.0.0/8"]})).unwrap_err();
            assert_eq!(error.code, Code::UnsupportedField);
            assert!(error.message.contains("10.0.0.0/8"), "{error}");
        }
    }
}
