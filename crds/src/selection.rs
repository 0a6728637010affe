//! Which objects a gateway takes, and which of two objects with one name wins.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::gateway::{ApisSpec, GatewayRef, Namespaces};

/// A gateway's name and the part of its spec that decides what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Namespace of the DoormanGateway.
    pub namespace: String,
    /// Name of the DoormanGateway.
    pub name: String,
    /// Namespaces objects are taken from.
    pub namespaces: Namespaces,
    /// Labels of the namespaces, with [`Namespaces::Selector`].
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of the objects.
    pub selector: Option<LabelSelector>,
}

impl Selection {
    /// The selection of a gateway with this `spec.apis`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, apis: Option<&ApisSpec>) -> Self {
        let apis = apis.cloned().unwrap_or_default();
        Self {
            namespace: namespace.into(),
            name: name.into(),
            namespaces: apis.namespaces.unwrap_or_default(),
            namespace_selector: apis.namespace_selector,
            selector: apis.selector,
        }
    }

    /// Whether the gateway takes an object. `namespace_labels` answers for a namespace; needed with
    /// [`Namespaces::Selector`] only, where an unknown namespace is not selected.
    pub fn takes<'a>(
        &self,
        meta: &ObjectMeta,
        refs: Option<&[GatewayRef]>,
        namespace_labels: impl FnOnce(&str) -> Option<&'a BTreeMap<String, String>>,
    ) -> bool {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let in_namespace = match self.namespaces {
            Namespaces::Same => namespace == self.namespace,
            Namespaces::All => true,
            Namespaces::Selector => match (&self.namespace_selector, namespace_labels(namespace)) {
                (Some(selector), Some(labels)) => matches(selector, labels),
                _ => false,
            },
        };
        let empty = BTreeMap::new();
        in_namespace
            && self.selector.as_ref().is_none_or(|s| matches(s, meta.labels.as_ref().unwrap_or(&empty)))
            && refs.is_none_or(|refs| {
                refs.iter()
                    .any(|r| r.name == self.name && r.namespace.as_deref().unwrap_or(namespace) == self.namespace)
            })
    }
}

/// Label selector semantics of Kubernetes (apimachinery `LabelSelectorAsSelector`); an unknown operator matches nothing.
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let by_label = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let by_expression = selector.match_expressions.iter().flatten().all(|expression| {
        let value = labels.get(&expression.key);
        let listed = || value.is_some_and(|v| expression.values.iter().flatten().any(|wanted| wanted == v));
        match expression.operator.as_str() {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    by_label && by_expression
}

/// Orders claimants of one name: the first in this order wins. Older first, then by namespace, name and uid.
pub fn precedence(meta: &ObjectMeta) -> (i64, &str, &str, &str) {
    let created = meta.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
    (
        created,
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn meta(namespace: &str, labels: &[(&str, &str)]) -> ObjectMeta {
        ObjectMeta {
            namespace: Some(namespace.into()),
            labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            ..ObjectMeta::default()
        }
    }

    fn gateway(apis: ApisSpec) -> Selection {
        Selection::new("edge", "main", Some(&apis))
    }

    fn reference(name: &str, namespace: Option<&str>) -> GatewayRef {
        GatewayRef { name: name.into(), namespace: namespace.map(Into::into) }
    }

    #[test]
    fn same_takes_its_own_namespace_only() {
        let gateway = gateway(ApisSpec::default());
        assert!(gateway.takes(&meta("edge", &[]), None, |_| None));
        assert!(!gateway.takes(&meta("other", &[]), None, |_| None));
    }

    #[test]
    fn refs_must_name_the_gateway() {
        let gateway = gateway(ApisSpec { namespaces: Some(Namespaces::All), ..ApisSpec::default() });
        assert!(gateway.takes(&meta("edge", &[]), Some(&[reference("main", None)]), |_| None));
        assert!(!gateway.takes(&meta("team", &[]), Some(&[reference("main", None)]), |_| None));
        assert!(gateway.takes(&meta("team", &[]), Some(&[reference("main", Some("edge"))]), |_| None));
        assert!(!gateway.takes(&meta("edge", &[]), Some(&[reference("second", None)]), |_| None));
    }

    #[test]
    fn namespace_selector_needs_known_matching_labels() {
        let gateway = gateway(ApisSpec {
            namespaces: Some(Namespaces::Selector),
            namespace_selector: Some(LabelSelector {
                match_labels: Some([("team".to_owned(), "a".to_owned())].into()),
                ..LabelSelector::default()
            }),
            selector: None,
        });
        let labels: BTreeMap<String, String> = [("team".to_owned(), "a".to_owned())].into();
        let others = BTreeMap::new();
        assert!(gateway.takes(&meta("x", &[]), None, |_| Some(&labels)));
        assert!(!gateway.takes(&meta("x", &[]), None, |_| Some(&others)));
        assert!(!gateway.takes(&meta("x", &[]), None, |_| None));
    }

    #[test]
    fn expressions_follow_kubernetes() {
        let labels: BTreeMap<String, String> = [("tier".to_owned(), "gold".to_owned())].into();
        let table = [
            ("In", "tier", &["gold", "tin"][..], true),
            ("In", "tier", &["tin"], false),
            ("In", "none", &["gold"], false),
            ("NotIn", "tier", &["gold"], false),
            ("NotIn", "none", &["gold"], true),
            ("Exists", "tier", &[], true),
            ("DoesNotExist", "tier", &[], false),
            ("Near", "tier", &["gold"], false),
        ];
        for (operator, key, values, expected) in table {
            let selector = LabelSelector {
                match_labels: None,
                match_expressions: Some(vec![LabelSelectorRequirement {
                    key: key.into(),
                    operator: operator.into(),
                    values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
                }]),
            };
            assert_eq!(matches(&selector, &labels), expected, "{key} {operator} {values:?}");
        }
    }
}
