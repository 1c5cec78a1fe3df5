//! `v1` Namespace.

use k8s_openapi::api::core::v1 as core;

use super::{Convert, ConvertError, labels, object_key};
use crate::event::{Kind, Object};
use crate::model::Namespace;
use crate::source::narrow::{Fields, METADATA};

/// The label that the API server sets to the name on every Namespace.
const METADATA_NAME: &str = "kubernetes.io/metadata.name";

impl Namespace {
    /// The Namespace that an object's `metadata.namespace` stands for where no Namespace
    /// object says more.
    pub fn implicit(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            labels: [(METADATA_NAME.to_owned(), name.clone())].into(),
            name,
        }
    }
}

impl Convert for core::Namespace {
    const KIND: Kind = Kind::Namespace;
    const FIELDS: Fields = Fields::Only(&[("metadata", METADATA)]);

    fn convert(mut self) -> Result<Option<Object>, ConvertError> {
        let mut namespace = Namespace::implicit(&*object_key(Self::KIND, &self.metadata)?.name);
        let mut labels = labels(&mut self.metadata);
        labels.append(&mut namespace.labels);
        namespace.labels = labels;
        Ok(Some(Object::Namespace(namespace)))
    }
}
