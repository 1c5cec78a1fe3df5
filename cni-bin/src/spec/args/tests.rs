use super::*;

fn environment_of(vars: &[(&str, &str)]) -> Environment {
    let vars = vars
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Environment::new(vars).unwrap()
}

fn args(text: &str) -> Result<ExtraArgs, Error> {
    environment_of(&[("CNI_ARGS", text)]).extra_args()
}

#[test]
fn a_verb_is_one_of_six_and_an_unknown_one_is_named() {
    for (text, verb) in [
        ("ADD", Verb::Add),
        ("DEL", Verb::Del),
        ("CHECK", Verb::Check),
        ("GC", Verb::Gc),
        ("STATUS", Verb::Status),
        ("VERSION", Verb::Version),
    ] {
        let env = environment_of(&[("CNI_COMMAND", text)]);
        assert_eq!(env.verb().unwrap(), Some(verb));
    }
    assert_eq!(environment_of(&[]).verb().unwrap(), None);
    for bad in ["FOO", "add", "ADD "] {
        let error = environment_of(&[("CNI_COMMAND", bad)]).verb().unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.message.contains(bad), "{error}");
    }
}

/// For every verb and every subset of the variables: which are reported missing.
#[test]
fn all_missing_variables_are_named_in_one_message() {
    let all = [
        ("CNI_CONTAINERID", "abc"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
    ];
    for verb in [Verb::Add, Verb::Check, Verb::Del] {
        for subset in 0u8..8 {
            let given: Vec<_> = (0..3).filter(|n| subset & (1 << n) != 0).collect();
            let vars: Vec<_> = given.iter().map(|n| all[*n]).collect();
            let missing: Vec<_> = (0..3)
                .filter(|n| !given.contains(n) && (verb != Verb::Del || *n != 1))
                .map(|n| all[n].0)
                .collect();
            match environment_of(&vars).target(verb) {
                Ok(target) => {
                    assert!(missing.is_empty(), "{verb:?} accepted without {missing:?}");
                    assert_eq!(target.container_id, "abc");
                }
                Err(error) => {
                    assert_eq!(error.code, Code::InvalidEnvironment);
                    assert!(!missing.is_empty(), "{verb:?} {vars:?}: {error}");
                    for name in missing {
                        assert!(error.message.contains(name), "{error}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_empty_variable_is_a_missing_one() {
    let env = environment_of(&[
        ("CNI_CONTAINERID", "a"),
        ("CNI_IFNAME", "e"),
        ("CNI_NETNS", ""),
    ]);
    assert!(env.target(Verb::Add).is_err());
    assert_eq!(env.target(Verb::Del).unwrap().netns, None);
}

#[test]
fn container_ids_and_interface_names_are_checked() {
    let target = |id: &str, ifname: &str| {
        environment_of(&[
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", ifname),
            ("CNI_NETNS", "/x"),
        ])
        .target(Verb::Add)
    };
    for id in ["ABC.def-1_2", "a", "0"] {
        assert!(target(id, "eth0").is_ok(), "{id}");
    }
    for id in ["_x", "a/b", "Ünï", "-x", ".x", "a b", "a\n"] {
        assert_eq!(
            target(id, "eth0").unwrap_err().code,
            Code::InvalidEnvironment,
            "{id}"
        );
    }
    for ifname in ["eth0", "exactly15bytes_", "a.b", "ö"] {
        assert!(target("a", ifname).is_ok(), "{ifname}");
    }
    for ifname in ["sixteen-bytes-xx", ".", "..", "a/b", "a:b", "a b", "a\tb"] {
        assert_eq!(
            target("a", ifname).unwrap_err().code,
            Code::InvalidEnvironment,
            "{ifname}"
        );
    }
}

#[test]
fn kubernetes_arguments_name_the_pod_in_any_order() {
    let expected = PodRef {
        namespace: "ns".into(),
        name: "web-0".into(),
        uid: Some("u-1".into()),
    };
    for text in [
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_UID=u-1;FOO=bar",
        "FOO=bar;K8S_POD_UID=u-1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=ns;IgnoreUnknown=true",
        "K8S_POD_UID=u-1;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_NAMESPACE=ns",
    ] {
        assert_eq!(args(text).unwrap().pod.as_ref(), Some(&expected), "{text}");
    }
    assert_eq!(args("").unwrap(), ExtraArgs::default());
}

#[test]
fn malformed_and_unknown_arguments_are_refused() {
    for bad in [
        "FOO=bar",
        "IgnoreUnknown=0;FOO=bar",
        "IgnoreUnknown=False;FOO=bar",
        "IgnoreUnknown=perhaps",
        "A=B=C",
        "IgnoreUnknown=1;A",
        "IgnoreUnknown=1;",
        "IP=10.0.0",
        "MAC=nonsense",
    ] {
        assert_eq!(
            args(bad).unwrap_err().code,
            Code::InvalidEnvironment,
            "{bad}"
        );
    }
    assert!(args("FOO=bar").unwrap_err().message.contains("FOO"));
    let both = args("IP=10.0.0.9;MAC=0a:58:00:00:00:01").unwrap();
    assert_eq!(both.ip, Some("10.0.0.9".parse().unwrap()));
    assert_eq!(both.mac, Some(MacAddr([0x0a, 0x58, 0, 0, 0, 1])));
}

#[test]
fn variables_that_are_not_utf8_are_refused_if_they_are_ours() {
    use std::os::unix::ffi::OsStringExt;
    let bad = OsString::from_vec(vec![0xff]);
    assert!(Environment::new([("LS_COLORS".into(), bad.clone())]).is_ok());
    let error = Environment::new([("CNI_ARGS".into(), bad)]).unwrap_err();
    assert_eq!(error.code, Code::InvalidEnvironment);
}
