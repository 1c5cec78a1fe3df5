//! The capability `portMappings`, and the keys of the portmap plugin that say how they are
//! done.

use std::net::IpAddr;

use dataplane::attachment::{PortMapping, Transport};
use serde_json::Value;

use super::error::Error;
use super::json::Object;

/// The mappings of `runtimeConfig`, without repetitions.
pub fn port_mappings(
    root: &Object<'_>,
    runtime: Option<&Object<'_>>,
) -> Result<Vec<PortMapping>, Error> {
    refuse_unsupported(root)?;
    let Some(runtime) = runtime else {
        return Ok(Vec::new());
    };
    let mut mappings: Vec<PortMapping> = Vec::new();
    for (n, entry) in runtime.array("portMappings")?.iter().enumerate() {
        let path = format!("{}[{n}]", runtime.path("portMappings"));
        let mapping = port_mapping(&Object::at(path.clone(), entry)?)?;
        // Runtimes repeat what several containers of a pod declare.
        if mappings.contains(&mapping) {
            continue;
        }
        if let Some(other) = mappings.iter().find(|other| other.overlaps(&mapping)) {
            return Err(Error::config(format!(
                "{path}: hostPort {mapping} leads to port {} of the pod, but {other} leads to \
                 port {} already: give one of them another hostPort",
                mapping.container_port, other.container_port
            )));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

fn port_mapping(entry: &Object<'_>) -> Result<PortMapping, Error> {
    Ok(PortMapping {
        host_ip: host_ip(entry)?,
        host_port: port(entry, "hostPort")?,
        container_port: port(entry, "containerPort")?,
        protocol: transport(entry)?,
    })
}

fn port(entry: &Object<'_>, key: &str) -> Result<u16, Error> {
    let path = entry.path(key);
    match entry.number(key)? {
        None => Err(Error::config(format!("{path}: missing"))),
        Some(number) => match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(Error::config(format!(
                "{path}: {number} is not between 1 and 65535"
            ))),
        },
    }
}

/// TCP where it is not said, as in a pod's specification.
fn transport(entry: &Object<'_>) -> Result<Transport, Error> {
    let stated = entry.text("protocol")?;
    match stated.map(str::to_ascii_lowercase).as_deref() {
        None | Some("tcp") => Ok(Transport::Tcp),
        Some("udp") => Ok(Transport::Udp),
        Some("sctp") => Ok(Transport::Sctp),
        Some(_) => Err(Error::config(format!(
            "{}: {:?} is none of tcp, udp and sctp",
            entry.path("protocol"),
            stated.unwrap_or_default()
        ))),
    }
}

fn host_ip(entry: &Object<'_>) -> Result<Option<IpAddr>, Error> {
    let stated = entry.address("hostIP")?;
    match stated {
        Some(ip) if ip.is_multicast() || ip == IpAddr::from([255; 4]) => {
            Err(Error::config(format!(
                "{}: {ip} is not the address of one host",
                entry.path("hostIP")
            )))
        }
        // The kernel never lets a packet with this source leave the host, and IPv6 has no
        // setting like route_localnet.
        Some(IpAddr::V6(ip)) if ip.is_loopback() => Err(Error::unsupported(
            &entry.path("hostIP"),
            &ip.to_string().into(),
            "use 127.0.0.1, or an address of an interface",
        )),
        _ => Ok(stated),
    }
}

/// Keys of the portmap plugin. Those that say how it masquerades have no effect, where the
/// outcome is the same; those that change what is masqueraded, or which packets are for a
/// pod, are refused.
fn refuse_unsupported(root: &Object<'_>) -> Result<(), Error> {
    if root.boolean("snat")? == Some(false) {
        let advice = "a pod that reaches itself, and 127.0.0.1, are always masqueraded";
        return Err(Error::unsupported("snat", &Value::Bool(false), advice));
    }
    if root.boolean("masqAll")? == Some(true) {
        let advice = "pods see the addresses of their clients; leave it out";
        return Err(Error::unsupported("masqAll", &Value::Bool(true), advice));
    }
    for key in ["conditionsV4", "conditionsV6"] {
        if !root.array(key)?.is_empty() {
            let value = root.value(key).unwrap_or(&Value::Null);
            let advice = "they are matches of iptables; use hostIP, or a NetworkPolicy";
            return Err(Error::unsupported(key, value, advice));
        }
    }
    root.number("markMasqBit")?;
    root.text("externalSetMarkChain")?;
    match root.text("backend")? {
        None | Some("iptables" | "nftables") => Ok(()),
        Some(other) => {
            let advice = "the portmap plugin knows iptables and nftables; both become nftables";
            Err(Error::unsupported("backend", &other.into(), advice))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::error::Code;
    use crate::spec::json::parse;

    fn read(conf: &Value) -> Result<Vec<PortMapping>, Error> {
        let value = parse(conf.to_string().as_bytes())?;
        let root = Object::root(value.as_object().unwrap());
        port_mappings(&root, root.object("runtimeConfig")?.as_ref())
    }

    fn mappings(entries: &Value) -> Result<Vec<PortMapping>, Error> {
        read(&json!({"runtimeConfig": {"portMappings": entries}}))
    }

    fn shown(entries: &Value) -> Vec<String> {
        let mappings = mappings(entries).unwrap();
        mappings
            .iter()
            .map(|mapping| format!("{mapping}->{}", mapping.container_port))
            .collect()
    }

    /// cni.md 13: go-cni's structures have no JSON tags.
    #[test]
    fn the_payload_of_containerd_is_read() {
        let payload = json!([
            {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
            {"HostPort": 5353, "ContainerPort": 53, "Protocol": "UDP", "HostIP": "192.0.2.2"},
        ]);
        assert_eq!(shown(&payload), ["8080/tcp->80", "192.0.2.2:5353/udp->53"]);
        let conf = json!({"RuntimeConfig": {"PortMappings": payload}});
        assert_eq!(read(&conf).unwrap().len(), 2);
    }

    #[test]
    fn the_payload_of_the_convention_is_read() {
        let entries = json!([
            {"hostPort": 80, "containerPort": 8080, "protocol": "TCP"},
            {"hostPort": 81, "containerPort": 8080, "hostIP": "0.0.0.0"},
            {"hostPort": 82, "containerPort": 8080, "hostIP": "::", "protocol": "sctp"},
            {"hostPort": 80, "containerPort": 8080, "protocol": "tcp"},
        ]);
        let expected = ["80/tcp->8080", "0.0.0.0:81/tcp->8080", "[::]:82/sctp->8080"];
        assert_eq!(shown(&entries), expected);
    }

    #[test]
    fn a_wrong_mapping_is_named_with_its_place() {
        for (entry, place) in [
            (json!({"containerPort": 80}), "hostPort: missing"),
            (json!({"hostPort": 80}), "containerPort: missing"),
            (json!({"hostPort": 0, "containerPort": 80}), "hostPort: 0 "),
            (
                json!({"hostPort": 65536, "containerPort": 80}),
                "hostPort: 65536",
            ),
            (json!({"hostPort": -1, "containerPort": 80}), "hostPort: "),
            (
                json!({"hostPort": 1, "containerPort": 1, "protocol": "icmp"}),
                "protocol: \"icmp\"",
            ),
            (
                json!({"hostPort": 1, "containerPort": 1, "hostIP": "x"}),
                "hostIP: \"x\"",
            ),
            (
                json!({"hostPort": 1, "containerPort": 1, "hostIP": "224.0.0.1"}),
                "hostIP: 224",
            ),
        ] {
            let good = json!({"hostPort": 9, "containerPort": 9});
            let error = mappings(&json!([good, entry])).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{entry}");
            let place = format!("runtimeConfig.portMappings[1].{place}");
            assert!(error.message.starts_with(&place), "{error}");
        }
    }

    #[test]
    fn one_host_port_leads_to_one_port() {
        let error = mappings(&json!([
            {"hostPort": 80, "containerPort": 80},
            {"hostPort": 80, "containerPort": 81, "hostIP": "192.0.2.1"},
        ]));
        let error = error.unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.message.contains("192.0.2.1:80/tcp"), "{error}");
        assert!(error.message.contains("portMappings[1]"), "{error}");
    }

    #[test]
    fn keys_of_portmap_without_effect_are_accepted_and_others_refused() {
        read(&json!({
            "snat": true, "masqAll": false, "markMasqBit": 13, "conditionsV4": [],
            "externalSetMarkChain": "KUBE-MARK-MASQ", "backend": "iptables",
        }))
        .unwrap();
        for (conf, key, value) in [
            (json!({"snat": false}), "snat", "false"),
            (json!({"masqAll": true}), "masqAll", "true"),
            (
                json!({"conditionsV4": ["-s", "10.0.0.0/8"]}),
                "conditionsV4",
                "10.0.0.0/8",
            ),
            (
                json!({"conditionsV6": ["-s", "fd00::/8"]}),
                "conditionsV6",
                "fd00::/8",
            ),
            (json!({"backend": "pf"}), "backend", "pf"),
            (
                json!({"runtimeConfig": {"portMappings": [
                    {"hostPort": 1, "containerPort": 1, "hostIP": "::1"}]}}),
                "runtimeConfig.portMappings[0].hostIP",
                "::1",
            ),
        ] {
            let error = read(&conf).unwrap_err();
            assert_eq!(error.code, Code::UnsupportedField, "{conf}");
            let named = error.message.contains(key) && error.message.contains(value);
            assert!(named, "{error}");
        }
    }
}
