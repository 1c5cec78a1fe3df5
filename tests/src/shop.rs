//! The pods and the policy that most suites begin with: a shop, and a lab beside it.

use serde_json::{Value, json};

use crate::objects::policy;

/// Labels of the pods of an app.
pub fn app(name: &str) -> Value {
    json!({"app": name})
}

/// Web and front of the shop, and the lab's probe.
pub fn pods() -> Vec<(&'static str, Value)> {
    vec![
        ("shop/web", app("web")),
        ("shop/front", app("front")),
        ("lab/probe", app("probe")),
    ]
}

/// The same, and in the lab a pod with the labels of the shop's front.
pub fn pods_with_two_fronts() -> Vec<(&'static str, Value)> {
    let mut pods = pods();
    pods.insert(2, ("lab/front", app("front")));
    pods
}

/// Web is open to the shop's front, on port 80.
pub fn web_for_front() -> Value {
    policy(
        "shop/web",
        &json!({"podSelector": {"matchLabels": app("web")}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": app("front")}}], "ports": [{"port": 80}]}]}),
    )
}
