//! What others see: CNI results, `nft`, `ip`, `conntrack`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command;
use crate::netns::NetNs;

/// The items of a JSON list; none of anything else.
pub fn items(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

/// The addresses of a CNI result, without their prefix lengths.
pub fn result_ips(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"]
        .as_array()
        .with_context(|| format!("no ips in {result}"))?;
    ips.iter()
        .map(|ip| {
            let text = ip["address"]
                .as_str()
                .with_context(|| format!("no address in {ip}"))?;
            let address = text.split('/').next().unwrap_or_default();
            address
                .parse()
                .with_context(|| format!("{text:?} in a result"))
        })
        .collect()
}

/// The node's end of a pod's link in a CNI result: the interface without a
/// sandbox that is not the bridge.
pub fn host_interface(result: &Value) -> Result<String> {
    let interfaces = items(&result["interfaces"]);
    let port = interfaces
        .filter(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty())
        .filter_map(|interface| interface["name"].as_str())
        .find(|name| *name != "cbr0");
    Ok(port
        .with_context(|| format!("no host interface in {result}"))?
        .to_owned())
}

/// Everything nftables holds in a namespace: `nft -j -a list ruleset` without the
/// line about nft itself.
pub fn ruleset(netns: &NetNs) -> Result<Vec<Value>> {
    let text = command::run(netns.command("nft").args(["-j", "-a", "list", "ruleset"]))?;
    let mut all: Value = serde_json::from_str(&text).context("nft -j list ruleset")?;
    let Value::Array(mut objects) = all["nftables"].take() else {
        anyhow::bail!("nft -j printed {text:?}");
    };
    objects.retain(|object| object.get("metainfo").is_none());
    Ok(objects)
}

/// A ruleset as a set of objects with their handles, elements in a fixed order,
/// so that two of them compare equal exactly if nothing was changed between.
pub fn fingerprint(objects: &[Value]) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for object in objects {
        let mut object = object.clone();
        normalise(&mut object);
        *counted.entry(object.to_string()).or_insert(0) += 1;
    }
    counted
}

/// Sorts the elements of sets and maps, which come in the order of a hash, and
/// takes out what counts packets or time.
fn normalise(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for volatile in ["packets", "bytes", "expires"] {
                object.remove(volatile);
            }
            if let Some(Value::Array(elements)) = object.get_mut("elem") {
                elements.sort_by_key(Value::to_string);
            }
            object.values_mut().for_each(normalise);
        }
        Value::Array(items) => items.iter_mut().for_each(normalise),
        _ => {}
    }
}

/// Family and name of every table in a namespace, sorted.
pub fn tables(netns: &NetNs) -> Result<Vec<String>> {
    let mut tables: Vec<_> = ruleset(netns)?
        .iter()
        .filter_map(|object| object.get("table"))
        .map(|table| {
            let text = |key: &str| table[key].as_str().unwrap_or("?").to_owned();
            format!("{} {}", text("family"), text("name"))
        })
        .collect();
    tables.sort();
    Ok(tables)
}

/// Runs nft commands in a namespace, as another program on the node would.
pub fn nft(netns: &NetNs, script: &str) -> Result<()> {
    let mut command = netns.command("nft");
    let output = command::output(command.args(["-f", "-"]), script.as_bytes(), command::LIMIT)?;
    ensure!(
        output.status.success(),
        "nft -f: {}",
        command::complaint(&output)
    );
    Ok(())
}

/// The namespace's conntrack entries, one per line.
pub fn conntrack(netns: &NetNs) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let text = command::run(netns.command("conntrack").args(["-L", "-f", family]))?;
        lines.extend(text.lines().map(str::to_owned));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fingerprint_ignores_the_order_of_elements_and_counters() {
        let set = |elements: Value, packets: u32| {
            json!({"set": {"name": "s", "handle": 7, "elem": elements,
                "expr": [{"counter": {"packets": packets, "bytes": 1}}]}})
        };
        let one = fingerprint(&[set(json!(["a", "b"]), 1)]);
        assert_eq!(one, fingerprint(&[set(json!(["b", "a"]), 9)]));
        assert_ne!(one, fingerprint(&[set(json!(["b"]), 1)]));
        assert_ne!(
            one,
            fingerprint(&[set(json!(["a", "b"]), 1), set(json!(["a", "b"]), 1)])
        );
    }

    #[test]
    fn the_host_interface_is_neither_the_bridge_nor_in_the_sandbox() {
        let result = json!({"interfaces": [
            {"name": "cbr0"}, {"name": "trm0", "sandbox": ""},
            {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.88.0.2/32"}, {"address": "fd88::2/128"}]});
        assert_eq!(host_interface(&result).unwrap(), "trm0");
        let ips = result_ips(&result).unwrap();
        assert_eq!(
            ips,
            ["10.88.0.2", "fd88::2"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
    }
}
