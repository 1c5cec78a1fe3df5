//! `meta/v1` LabelSelector.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use crate::model::LabelSelector;
use crate::model::selector::{Requirement, SelectorError};

impl LabelSelector {
    /// Parses a selector that is present; an empty one matches everything. (What an
    /// absent one means is the business of the field that it is absent from.)
    ///
    /// # Errors
    /// Where the API server would refuse it.
    pub fn parse(selector: &meta::LabelSelector) -> Result<Self, SelectorError> {
        let labels = selector.match_labels.iter().flatten();
        let expressions = selector.match_expressions.iter().flatten();
        labels
            .map(|(key, value)| Requirement::equals(key, value))
            .chain(expressions.map(|expression| {
                let values = expression.values.iter().flatten().map(String::as_str);
                Requirement::parse(&expression.key, &expression.operator, values)
            }))
            .collect::<Result<Vec<_>, _>>()
            .map(Self::new)
    }
}
