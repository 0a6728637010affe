//! Secrets that APIs name: who may use which, and why one can't be used.
//!
//! An API names Secrets of its own namespace only. That alone gives nobody anything: a Secret is used when its owner has
//! said so on the Secret itself, by a [`Consent`]. Operator and gateway both ask here, so that a status and the answer to a
//! call say the same.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::DoormanApiSpec;
use super::tls::{AUTHORITIES_FIELD, CERTIFICATE_FIELD};
use crate::{FieldError, Reason};

/// Label of a Secret that APIs of its namespace may name; its value must be `true`.
pub const CONSENT_LABEL: &str = "doorman.dev/upstream-tls";
/// Annotation of such a Secret with the gateways of other namespaces that may use it too: `namespace/name`, separated by
/// commas.
pub const GATEWAYS_ANNOTATION: &str = "doorman.dev/upstream-tls-gateways";

/// Most Secrets of one namespace that one gateway is given the right to read: it watches each of them by itself, and the
/// namespaces that share it must not wear out its memory and its connections.
pub const MAX_SECRETS: usize = 100;

/// Most bytes of that annotation; a longer one names no gateway.
const MOST_NAMED: usize = 4_096;

/// What the owner of a Secret allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consent {
    /// No use at all.
    None,
    /// Use by the gateways of its own namespace and by those of this list.
    Given(Box<str>),
}

impl Consent {
    /// As the metadata of a Secret says.
    pub fn of(meta: &ObjectMeta) -> Self {
        if meta.labels.as_ref().and_then(|labels| labels.get(CONSENT_LABEL)).is_none_or(|value| value != "true") {
            return Self::None;
        }
        let named = meta.annotations.as_ref().and_then(|annotations| annotations.get(GATEWAYS_ANNOTATION));
        // Of all Secrets of a cluster this is kept, whoever may write them.
        let named = named.filter(|named| named.len() <= MOST_NAMED).map(String::as_str).unwrap_or_default();
        Self::Given(named.into())
    }

    /// Whether this gateway may use the Secret, which is in that namespace.
    ///
    /// # Errors
    /// Why not.
    pub fn covers(&self, secret_namespace: &str, namespace: &str, gateway: &str) -> Result<(), NoSecret> {
        let Self::Given(others) = self else { return Err(NoSecret::NoConsent) };
        let full = format!("{namespace}/{gateway}");
        let is_named = || others.split(',').any(|other| other.trim() == full);
        if secret_namespace == namespace || is_named() { Ok(()) } else { Err(NoSecret::NotFor(full)) }
    }
}

/// Why a Secret that an API names is not there for a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NoSecret {
    /// It does not exist.
    NotFound,
    /// Its owner has not consented to any use.
    NoConsent,
    /// Its owner has not consented to the use by this gateway of another namespace.
    NotFor(String),
    /// The API server does not let the gateway read it, or the operator can't see to that; with what was said, if anything.
    Forbidden(Option<String>),
    /// The gateway reads as many Secrets of this namespace as it may: [`MAX_SECRETS`].
    TooMany,
    /// Nothing has been heard of it yet.
    NotRead,
}

impl NoSecret {
    /// The same about the field that names the Secret.
    pub fn error(&self, field: &str, name: &str) -> FieldError {
        let (reason, message) = match self {
            Self::NotFound => (Reason::SecretNotFound, format!("no Secret is named `{name}`")),
            Self::NoConsent => (
                Reason::RefNotPermitted,
                format!("the Secret `{name}` does not carry the label {CONSENT_LABEL}: \"true\""),
            ),
            Self::NotFor(gateway) => (
                Reason::RefNotPermitted,
                format!("the annotation {GATEWAYS_ANNOTATION} of the Secret `{name}` does not name {gateway}"),
            ),
            Self::Forbidden(None) => (
                Reason::RefNotPermitted,
                format!(
                    "the gateway may not read the Secret `{name}`: it must exist and carry the label {CONSENT_LABEL}: \"true\", and of a namespace a gateway reads {MAX_SECRETS} at most"
                ),
            ),
            Self::Forbidden(Some(said)) => {
                (Reason::RefNotPermitted, format!("the gateway can't be allowed to read the Secret `{name}`: {said}"))
            }
            Self::TooMany => (
                Reason::RefNotPermitted,
                format!(
                    "the gateway reads {MAX_SECRETS} Secrets of this namespace already, as many as it may; `{name}` is left out"
                ),
            ),
            Self::NotRead => (
                Reason::SecretNotRead,
                format!("the Secret `{name}` has not been read yet: the API server is not reached, or says nothing"),
            ),
        };
        FieldError { field: field.to_owned(), message, reason }
    }
}

impl DoormanApiSpec {
    /// Names of the Secrets it needs, each with the field that names it, whether or not the rest of the spec is valid.
    pub fn secrets(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let tls = self.upstream.as_ref().and_then(|upstream| upstream.tls.as_ref());
        let authorities = tls.and_then(|tls| tls.ca_secret_ref.as_ref()).map(|secret| &*secret.name);
        let certificate = tls.and_then(|tls| tls.client_certificate_secret_ref.as_ref()).map(|secret| &*secret.name);
        let authorities = authorities.map(|name| (AUTHORITIES_FIELD, name));
        authorities.into_iter().chain(certificate.map(|name| (CERTIFICATE_FIELD, name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn consent(labels: Value, annotations: Value) -> Consent {
        Consent::of(&serde_json::from_value(json!({ "labels": labels, "annotations": annotations })).unwrap())
    }

    #[test]
    fn a_secret_is_for_nobody_unless_its_owner_says_so() {
        for labels in [json!({}), json!({ CONSENT_LABEL: "false" }), json!({ "doorman.dev/other": "true" })] {
            let consent = consent(labels, json!({ GATEWAYS_ANNOTATION: "edge/main" }));
            assert_eq!(consent.covers("shop", "shop", "main"), Err(NoSecret::NoConsent));
            assert_eq!(consent.covers("shop", "edge", "main"), Err(NoSecret::NoConsent));
        }
    }

    #[test]
    fn the_label_is_for_gateways_of_its_namespace_and_others_are_named() {
        let own = consent(json!({ CONSENT_LABEL: "true" }), json!({}));
        assert_eq!(own.covers("shop", "shop", "main"), Ok(()));
        assert_eq!(own.covers("shop", "edge", "main"), Err(NoSecret::NotFor("edge/main".to_owned())));
        let named =
            consent(json!({ CONSENT_LABEL: "true" }), json!({ GATEWAYS_ANNOTATION: " edge/main, ,edge/second" }));
        for (gateway, wanted) in [("main", true), ("second", true), ("mai", false), ("third", false)] {
            assert_eq!(named.covers("shop", "edge", gateway).is_ok(), wanted, "{gateway}");
        }
        assert_eq!(named.covers("shop", "shop", "any"), Ok(()));
        let long = consent(
            json!({ CONSENT_LABEL: "true" }),
            json!({ GATEWAYS_ANNOTATION: format!("edge/main{}", ",a".repeat(MOST_NAMED)) }),
        );
        assert!(long.covers("shop", "edge", "main").is_err(), "nobody can have much kept");
    }
}
