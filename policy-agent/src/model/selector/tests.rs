use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn one(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
    LabelSelector::new([Requirement::parse(key, operator, values.iter().copied()).unwrap()])
}

#[test]
fn everything_matches_everything() {
    assert!(LabelSelector::everything().matches(&labels(&[])));
    assert!(LabelSelector::everything().matches(&labels(&[("a", "b")])));
    assert!(LabelSelector::everything().is_everything());
}

#[test]
fn operators_by_presence_and_value_of_the_key() {
    // (operator, values, key absent, key has the value, key has another value)
    let table: [(&str, &[&str], [bool; 3]); 4] = [
        ("In", &["x"], [false, true, false]),
        ("NotIn", &["x"], [true, false, true]),
        ("Exists", &[], [false, true, true]),
        ("DoesNotExist", &[], [true, false, false]),
    ];
    for (operator, values, expected) in table {
        let selector = one("k", operator, values);
        let inputs = [
            labels(&[("other", "x")]),
            labels(&[("k", "x")]),
            labels(&[("k", "y")]),
        ];
        for (input, want) in inputs.iter().zip(expected) {
            assert_eq!(selector.matches(input), want, "{operator} on {input:?}");
        }
    }
}

#[test]
fn an_empty_value_still_needs_the_key() {
    let selector = LabelSelector::new([Requirement::equals("k", "").unwrap()]);
    assert!(selector.matches(&labels(&[("k", "")])));
    assert!(!selector.matches(&labels(&[])));
}

#[test]
fn requirements_are_a_conjunction() {
    let selector = LabelSelector::new([
        Requirement::equals("app", "web").unwrap(),
        Requirement::parse("tier", "NotIn", ["db"]).unwrap(),
    ]);
    assert!(selector.matches(&labels(&[("app", "web")])));
    assert!(!selector.matches(&labels(&[("app", "web"), ("tier", "db")])));
    assert!(!selector.matches(&labels(&[("tier", "web")])));
}

#[test]
fn the_same_meaning_written_differently_is_the_same_selector() {
    let by_label = LabelSelector::new([Requirement::equals("app", "web").unwrap()]);
    assert_eq!(by_label, one("app", "In", &["web", "web"]));
    assert_eq!(
        one("app", "In", &["b", "a"]),
        one("app", "In", &["a", "b", "a"])
    );
    let set: HashSet<_> = [by_label, one("app", "In", &["web"])].into();
    assert_eq!(set.len(), 1);
    assert_ne!(one("app", "In", &["a"]), one("app", "NotIn", &["a"]));
}

#[test]
fn prints_as_kubectl_does() {
    let selector = LabelSelector::new([
        Requirement::parse("tier", "In", ["b", "a"]).unwrap(),
        Requirement::equals("app", "web").unwrap(),
        Requirement::parse("zone", "NotIn", ["z1"]).unwrap(),
        Requirement::parse("new", "Exists", []).unwrap(),
        Requirement::parse("old", "DoesNotExist", []).unwrap(),
    ]);
    assert_eq!(
        selector.to_string(),
        "app=web,new,!old,tier in (a,b),zone notin (z1)"
    );
    assert_eq!(LabelSelector::everything().to_string(), "<none>");
}

#[test]
fn refuses_what_the_api_server_refuses_and_says_what_to_do() {
    let parse = |key: &str, operator: &str, values: &[&str]| {
        Requirement::parse(key, operator, values.iter().copied())
            .unwrap_err()
            .to_string()
    };
    assert!(parse("k", "in", &["a"]).contains("use In, NotIn, Exists or DoesNotExist"));
    assert!(parse("k", "In", &[]).contains("needs at least one value"));
    assert!(parse("k", "NotIn", &[]).contains("needs at least one value"));
    assert!(parse("k", "Exists", &["a"]).contains("takes no values"));
    assert!(parse("k", "DoesNotExist", &["a"]).contains("takes no values"));
    for key in [
        "", "/", "a/", "/a", "a b", "-a", "a-", "A.b/c", "a/b/c", "ä",
    ] {
        assert!(
            parse(key, "Exists", &[]).contains("is no label key"),
            "{key}"
        );
    }
    for value in ["a b", "-a", "a.", &"x".repeat(64)] {
        assert!(
            parse("k", "In", &[value]).contains("is no label value"),
            "{value}"
        );
    }
}

#[test]
fn accepts_every_form_of_key() {
    let longest = "x".repeat(63);
    for key in [
        "a",
        "A_b.C-1",
        "kubernetes.io/metadata.name",
        "a.b-c.d/E",
        &longest,
    ] {
        assert!(Requirement::parse(key, "Exists", []).is_ok(), "{key}");
    }
    assert!(Requirement::parse(&"x".repeat(64), "Exists", []).is_err());
}

proptest! {
    /// `In` and `NotIn`, `Exists` and `DoesNotExist` are each other's complement,
    /// whatever the labels.
    #[test]
    fn operators_pair_up_as_complements(
        key in "[a-c]",
        values in proptest::collection::btree_set("[x-z]", 1..3),
        present in proptest::collection::btree_map("[a-c]", "[x-z]", 0..3),
    ) {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        prop_assert_ne!(
            one(&key, "In", &values).matches(&present),
            one(&key, "NotIn", &values).matches(&present)
        );
        prop_assert_ne!(
            one(&key, "Exists", &[]).matches(&present),
            one(&key, "DoesNotExist", &[]).matches(&present)
        );
        let expected = present.get(&key).is_some_and(|v| values.contains(&v.as_str()));
        prop_assert_eq!(one(&key, "In", &values).matches(&present), expected);
    }
}
