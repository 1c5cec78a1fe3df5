//! The VLANs of a bridge port: `vlan`, `vlanTrunk` and `preserveDefaultVlan`, as the
//! reference bridge plugin has them.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::error::Error;
use super::json::Object;

/// The VLAN that a trunk's untagged frames are in where `vlan` does not say, and that the
/// kernel gives to a port by itself.
pub const DEFAULT: u16 = 1;

/// The VLANs that there are (IEEE 802.1Q).
const ALL: RangeInclusive<u32> = 1..=4094;

/// The VLANs of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vlans {
    /// `vlan`: that of the frames which the pod sends and gets without a tag.
    pub access: Option<u16>,
    /// `vlanTrunk`: those whose frames have tags. Ascending and disjoint.
    pub tagged: Vec<RangeInclusive<u16>>,
    /// `preserveDefaultVlan`: whether the port stays in the VLANs that the bridge gives to
    /// each of its ports.
    pub keeps_default: bool,
}

impl Vlans {
    /// Reads and checks the keys. `None`: the port has nothing to do with VLANs.
    pub fn of(root: &Object<'_>) -> Result<Option<Self>, Error> {
        let access = access(root)?;
        let mut tagged = trunk(root)?;
        if access.is_none() && tagged.is_empty() {
            return Ok(None);
        }
        if let Some(vlan) = access.filter(|vlan| tagged.iter().any(|range| range.contains(vlan))) {
            return Err(Error::config(format!(
                "vlanTrunk: {vlan} is also \"vlan\", whose frames have no tags: leave it out of one"
            )));
        }
        if access.is_none() {
            // As the reference plugin decides it: without a tag goes before with one.
            tagged = tagged.into_iter().filter_map(without_default).collect();
        }
        Ok(Some(Self {
            access,
            tagged,
            keeps_default: root.boolean("preserveDefaultVlan")?.unwrap_or(false),
        }))
    }

    /// The VLAN of frames without a tag.
    pub fn untagged(&self) -> u16 {
        self.access.unwrap_or(DEFAULT)
    }

    /// Those of the interface that carries the gateways of these pods: it is in the VLAN of
    /// their frames without tags and in no other.
    pub fn of_gateway(&self) -> Self {
        Self {
            tagged: Vec::new(),
            ..self.clone()
        }
    }
}

fn access(root: &Object<'_>) -> Result<Option<u16>, Error> {
    let Some(value) = root.value("vlan") else {
        return Ok(None);
    };
    match value.as_i64().and_then(|vlan| u16::try_from(vlan).ok()) {
        // Go's zero value.
        Some(0) => Ok(None),
        Some(vlan) if ALL.contains(&vlan.into()) => Ok(Some(vlan)),
        _ => Err(Error::config(format!(
            "vlan: {value} is not between 0 and 4094"
        ))),
    }
}

fn trunk(root: &Object<'_>) -> Result<Vec<RangeInclusive<u16>>, Error> {
    let mut ranges = Vec::new();
    for (n, entry) in root.array("vlanTrunk")?.iter().enumerate() {
        ranges.extend(entry_ranges(n, entry)?);
    }
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            // Named twice is meant once.
            Some(last) if *range.start() <= last.end() + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    Ok(merged)
}

/// An entry has an `id`, a range, or both.
fn entry_ranges(n: usize, entry: &Value) -> Result<Vec<RangeInclusive<u16>>, Error> {
    let entry = Object::at(format!("vlanTrunk[{n}]"), entry)?;
    let id = |key: &str| match entry.number(key)? {
        None => Ok(None),
        Some(id) => match u16::try_from(id) {
            Ok(vlan) if ALL.contains(&id) => Ok(Some(vlan)),
            _ => Err(Error::config(format!(
                "{}: {id} is not between 1 and 4094",
                entry.path(key)
            ))),
        },
    };
    let mut ranges = Vec::new();
    match (id("minID")?, id("maxID")?) {
        (None, None) => {}
        (Some(min), Some(max)) if min <= max => ranges.push(min..=max),
        (Some(min), Some(max)) => {
            return Err(Error::config(format!(
                "vlanTrunk[{n}]: minID {min} is greater than maxID {max}"
            )));
        }
        (min, _) => {
            let missing = if min.is_some() { "maxID" } else { "minID" };
            return Err(Error::config(format!(
                "{}: missing; minID and maxID are a range together",
                entry.path(missing)
            )));
        }
    }
    ranges.extend(id("id")?.map(|id| id..=id));
    if ranges.is_empty() {
        return Err(Error::config(format!(
            "vlanTrunk[{n}]: names no VLAN: give id, or minID and maxID"
        )));
    }
    Ok(ranges)
}

fn without_default(range: RangeInclusive<u16>) -> Option<RangeInclusive<u16>> {
    let start = (*range.start()).max(DEFAULT + 1);
    (start <= *range.end()).then_some(start..=*range.end())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vlans(keys: &Value) -> Result<Option<Vlans>, Error> {
        Vlans::of(&Object::root(keys.as_object().unwrap()))
    }

    fn tagged(trunk: &Value) -> Vec<RangeInclusive<u16>> {
        let keys = json!({"vlan": 4000, "vlanTrunk": trunk});
        vlans(&keys).unwrap().unwrap().tagged
    }

    #[test]
    fn a_port_without_vlans_has_nothing_to_do_with_them() {
        for keys in [
            json!({}),
            json!({"vlan": 0, "vlanTrunk": []}),
            json!({"vlan": null, "preserveDefaultVlan": true}),
        ] {
            assert_eq!(vlans(&keys).unwrap(), None, "{keys}");
        }
    }

    #[test]
    fn an_access_port_is_in_one_vlan_and_a_trunk_has_the_default_one_without_tags() {
        let access = vlans(&json!({"vlan": 4094})).unwrap().unwrap();
        assert_eq!((access.untagged(), access.tagged.len()), (4094, 0));
        assert!(!access.keeps_default);
        let trunk = json!({"vlanTrunk": [{"id": 7}], "preserveDefaultVlan": true});
        let trunk = vlans(&trunk).unwrap().unwrap();
        assert_eq!((trunk.access, trunk.untagged()), (None, 1));
        assert!(trunk.keeps_default);
        let both = json!({"vlan": 1, "vlanTrunk": [{"id": 7}]});
        let both = vlans(&both).unwrap().unwrap();
        assert_eq!((both.access, both.tagged.clone()), (Some(1), vec![7..=7]));
        assert_eq!(both.of_gateway().tagged, []);
    }

    /// Against a set of numbers, which is what the reference plugin makes of it.
    #[test]
    fn ids_and_ranges_of_a_trunk_are_united() {
        for (trunk, ids) in [
            (json!([{"id": 9}]), vec![9..=9]),
            (json!([{"minID": 5, "maxID": 5}]), vec![5..=5]),
            (
                json!([{"id": 101}, {"minID": 200, "maxID": 210}]),
                vec![101..=101, 200..=210],
            ),
            (
                json!([{"minID": 5, "maxID": 9, "id": 20}]),
                vec![5..=9, 20..=20],
            ),
            (
                json!([{"id": 8}, {"minID": 5, "maxID": 9}, {"id": 10}]),
                vec![5..=10],
            ),
            (
                json!([{"minID": 5, "maxID": 9}, {"minID": 2, "maxID": 30}]),
                vec![2..=30],
            ),
            (
                json!([{"minID": 4090, "maxID": 4094}, {"id": 1}]),
                vec![1..=1, 4090..=4094],
            ),
        ] {
            assert_eq!(tagged(&trunk), ids, "{trunk}");
            let mut named = std::collections::BTreeSet::new();
            for entry in trunk.as_array().unwrap() {
                let id = |key: &str| entry.get(key).and_then(Value::as_u64);
                named.extend(id("id"));
                named.extend(
                    id("minID")
                        .zip(id("maxID"))
                        .into_iter()
                        .flat_map(|(a, b)| a..=b),
                );
            }
            let flat = tagged(&trunk).into_iter().flatten().map(u64::from);
            assert_eq!(
                flat.collect::<Vec<_>>(),
                named.into_iter().collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn without_a_tag_goes_before_with_one() {
        for (trunk, ids) in [
            (json!([{"id": 1}]), vec![]),
            (json!([{"minID": 1, "maxID": 3}]), vec![2..=3]),
        ] {
            let vlans = vlans(&json!({ "vlanTrunk": trunk })).unwrap().unwrap();
            assert_eq!((vlans.untagged(), vlans.tagged), (1, ids));
        }
    }

    #[test]
    fn what_is_no_vlan_is_named_with_its_place() {
        for (keys, words) in [
            (json!({"vlan": -1}), ["vlan: ", "-1"]),
            (json!({"vlan": 4095}), ["vlan: ", "4095"]),
            (json!({"vlan": "7"}), ["vlan: ", "\"7\""]),
            (json!({"vlan": 1.5}), ["vlan: ", "1.5"]),
            (json!({"vlanTrunk": [{"id": 0}]}), ["vlanTrunk[0].id", "0"]),
            (
                json!({"vlanTrunk": [{"id": 2}, {"id": 4095}]}),
                ["vlanTrunk[1].id", "4095"],
            ),
            (
                json!({"vlanTrunk": [{"minID": 0, "maxID": 3}]}),
                ["vlanTrunk[0].minID", "0"],
            ),
            (
                json!({"vlanTrunk": [{"minID": 9, "maxID": 3}]}),
                ["vlanTrunk[0]", "9"],
            ),
            (
                json!({"vlanTrunk": [{"minID": 9}]}),
                ["vlanTrunk[0].maxID", "missing"],
            ),
            (
                json!({"vlanTrunk": [{"maxID": 9}]}),
                ["vlanTrunk[0].minID", "missing"],
            ),
            (json!({"vlanTrunk": [{}]}), ["vlanTrunk[0]", "no VLAN"]),
            (json!({"vlanTrunk": [7]}), ["vlanTrunk[0]", "7"]),
            (json!({"vlanTrunk": {"id": 7}}), ["vlanTrunk", "array"]),
            (
                json!({"vlan": 8, "vlanTrunk": [{"minID": 5, "maxID": 9}]}),
                ["vlanTrunk", "8"],
            ),
            (
                json!({"vlan": 8, "preserveDefaultVlan": 1}),
                ["preserveDefaultVlan", "1"],
            ),
        ] {
            let error = vlans(&keys).unwrap_err();
            assert_eq!(error.code.number(), 7, "{error}");
            assert!(
                words.iter().all(|word| error.message.contains(word)),
                "{keys}: {error}"
            );
        }
    }
}
