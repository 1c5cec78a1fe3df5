//! `networking.k8s.io/v1` ServiceCIDR.

use k8s_openapi::api::networking::v1 as networking;

use super::{Convert, ConvertError, object_key, parse_cidr};
use crate::event::{Kind, Object};
use crate::model::ServiceCidr;

impl Convert for networking::ServiceCIDR {
    const KIND: Kind = Kind::ServiceCidr;

    fn convert(self) -> Result<Option<Object>, ConvertError> {
        let name = object_key(Self::KIND, &self.metadata)?.name.to_string();
        let mut ranges = Vec::new();
        let cidrs = self.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
        for (i, cidr) in cidrs.iter().enumerate() {
            ranges.push(parse_cidr(cidr).ok_or_else(|| {
                ConvertError::value(
                    format!("spec.cidrs[{i}]"),
                    cidr,
                    "use a prefix such as 10.96.0.0/16",
                )
            })?);
        }
        Ok(Some(Object::ServiceCidr(ServiceCidr { name, ranges })))
    }
}
