//! `DoormanApi`: one version of one API with its endpoints and policies, and its typed form.
//!
//! The wire types here are the schema Kubernetes stores. [`parse`] turns a spec into an [`Api`], the only form the
//! gateway compiles and the form the operator derives `Accepted` from; whatever `parse` refuses is never served.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gateway::{GatewayRef, SecretKeyRef};

mod cors;
mod egress;
mod field_path;
mod parse;
mod secret;
mod tls;
mod transform;
mod validation;
mod weights;

pub use cors::Cors;
pub use egress::{is_forbidden_address, is_loopback_address};
pub use field_path::{FieldPath, Step};
pub use parse::{
    Access, Api, ApiKey, Breaker, Credits, Endpoint, Headers, IpRules, NEVER_FORWARDED, PER_CONNECTION, Timeouts,
    UpstreamAddress, parse,
};
pub use secret::{CONSENT_LABEL, Consent, GATEWAYS_ANNOTATION, MAX_SECRETS, NoSecret};
pub use tls::{AUTHORITIES_FIELD, CERTIFICATE_FIELD, TLS_AUTHORITIES, TLS_CERTIFICATE, TLS_KEY, UpstreamTls};
pub use transform::{BodyEdits, Edits, RequestTransform, ResponseTransform};
pub use validation::{Format, Kind, Pattern, Rule, Validation};
pub use weights::{MAX_WEIGHT, WeightedServer, read_weights};

/// One version of one API: where it is served from, which endpoints it has, who may call it and within which limits.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "doorman.dev",
    version = "v1alpha1",
    kind = "DoormanApi",
    plural = "doormanapis",
    singular = "doormanapi",
    shortname = "dapi",
    category = "doorman",
    namespaced,
    status = "DoormanApiStatus",
    derive = "PartialEq",
    printcolumn(name = "API", type_ = "string", json_path = ".spec.name"),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Protocol", type_ = "string", json_path = ".spec.protocol"),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Programmed')].status"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.name == oldSelf.name && self.version == oldSelf.version", "spec.name and spec.version can't be changed: create another DoormanApi"),
    validation = ("self.protocol != 'SOAP' || (has(self.servers) && size(self.servers) > 0)", "a SOAP API needs at least one entry in spec.servers"),
    validation = ("!has(self.serverWeights) || (has(self.servers) && size(self.serverWeights) == size(self.servers))", "spec.serverWeights needs one weight for each of spec.servers"),
    validation = ("!has(self.serverWeights) || self.serverWeights.exists(weight, weight > 0)", "spec.serverWeights must not all be 0: no server would be called"),
    validation = ("!(has(self.public) && self.public && has(self.credits) && self.credits.enabled)", "a public API can't charge credits: set spec.public or spec.credits.enabled to false")
)]
pub struct DoormanApiSpec {
    /// Name of the API, the first path segment clients call: letters, digits, `.`, `_`, `~` and `-`, up to 64.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._~-]*$"))]
    pub name: String,
    /// Version of the API, the second path segment, e.g. `v1`; up to 8 characters.
    #[schemars(length(min = 1, max = 8), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._~-]*$"))]
    pub version: String,
    /// Protocol the upstream speaks. A label for people and tools: this version serves every API under `/api/rest`.
    pub protocol: Protocol,
    /// What the API is for, up to 127 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 127))]
    pub description: Option<String>,
    /// `false` takes the API out of service with 403 `GTW012` without deleting it. Absent: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// `true` lets anyone call without a token; no user check or user limit applies. Absent: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    /// `false` skips every user check while the API stays listed as non-public. Absent: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_required: Option<bool>,
    /// Base URLs of the upstream, used in turn: `http://host:port/base` or `https://...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub servers: Option<Vec<String>>,
    /// How often each of `servers` is called beside the others, one weight for each, 0 to 100. 0 drains a server: it gets
    /// no new calls. Absent: all alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(range(min = 0, max = 100)))]
    pub server_weights: Option<Vec<i32>>,
    /// What clients may call. A call that matches no endpoint gets 404 `GTW003`.
    #[serde(default, deserialize_with = "exact", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["method".into(), "uri".into()]))]
    pub endpoints: Option<Vec<EndpointSpec>>,
    /// Who may call the API, of those who have subscribed to it. Absent: every signed-in user, or anyone when `public`.
    /// Users who registered themselves count: name groups or roles where that is too many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Box<AccessSpec>>,
    /// Cross-origin rules for browsers. Absent: any origin, no credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Box<CorsSpec>>,
    /// Which headers pass the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersSpec>,
    /// How the upstream is called: timeouts, retries, circuit breaker, TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Box<UpstreamSpec>>,
    /// Charging of calls to the callers' credits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credits: Option<CreditsSpec>,
    /// Settings for SOAP upstreams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soap: Option<Box<SoapSpec>>,
    /// Settings for GraphQL upstreams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graphql: Option<GraphqlSpec>,
    /// Settings for gRPC upstreams. Not served by this version (`UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Box<GrpcSpec>>,
    /// Path of the OpenAPI document on the upstream, which the platform API reads and imports endpoints from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub openapi_url: Option<String>,
    /// Changes to requests before they go upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_transform: Option<Box<TransformSpec>>,
    /// Changes to responses before they go to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_transform: Option<Box<TransformSpec>>,
    /// `true` wraps JSON answers as `{"status_code": .., "response": ..}` and adds `status_code` to refusals; the HTTP
    /// status stays. Absent: answers pass as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envelope: Option<bool>,
    /// Gateways that take this API. Absent: every gateway whose `spec.apis` selects it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub gateway_refs: Option<Vec<GatewayRef>>,
}

/// A list without room for more: thousands of objects are kept, and lists grow by doubling while they are read.
fn exact<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    let mut list = Option::<Vec<T>>::deserialize(deserializer)?;
    list.iter_mut().for_each(Vec::shrink_to_fit);
    Ok(list)
}

/// Protocol an upstream speaks.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[schemars(transform = crate::undescribed)]
pub enum Protocol {
    /// HTTP with resources as paths.
    REST,
    /// SOAP 1.1 or 1.2 over HTTP.
    SOAP,
    /// GraphQL over HTTP.
    GraphQL,
    /// gRPC over HTTP/2.
    GRPC,
}

/// One method on one path.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.serverWeights) || (has(self.servers) && size(self.serverWeights) == size(self.servers))", "serverWeights needs one weight for each of the endpoint's servers"),
    validation = ("!has(self.serverWeights) || self.serverWeights.exists(weight, weight > 0)", "serverWeights must not all be 0: no server would be called")
)]
pub struct EndpointSpec {
    /// HTTP method. `HEAD` calls are answered by the `GET` endpoint.
    pub method: Method,
    /// Path on the upstream below the server's base, starting with `/`; `{name}` matches one segment. Unique with `method`.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^/"))]
    pub uri: String,
    /// Path clients call when it differs from `uri`; its parameters must be those of `uri`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^/"))]
    pub client_uri: Option<String>,
    /// What the endpoint does, up to 255 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub description: Option<String>,
    /// Base URLs used for this endpoint instead of the API's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub servers: Option<Vec<String>>,
    /// How often each of the endpoint's `servers` is called beside the others, one weight for each, 0 to 100. 0 drains a
    /// server. Absent: all alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(range(min = 0, max = 100)))]
    pub server_weights: Option<Vec<i32>>,
    /// Rules the request body must satisfy; a violation is 400 `GTW011`. Bodies must then be JSON or SOAP in UTF-8, with one
    /// `Content-Type` and no `Content-Encoding`, and all others are refused; an absent one has no fields. `GET` and `HEAD`
    /// bodies never go upstream and are not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSpec>,
}

/// HTTP methods an endpoint can have.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(transform = crate::undescribed)]
pub enum Method {
    /// RFC 9110 9.3.1; serves `HEAD` too.
    Get,
    /// RFC 9110 9.3.3.
    Post,
    /// RFC 9110 9.3.4.
    Put,
    /// RFC 5789.
    Patch,
    /// RFC 9110 9.3.5.
    Delete,
    /// RFC 9110 9.3.2.
    Head,
}

impl Method {
    /// The method's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Head => "HEAD",
        }
    }
}

/// Rules for a request body.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ValidationSpec {
    /// `false` keeps the rules without applying them. Absent: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Rules by field path, e.g. `user.name` or `items[0].id`; checked in the order of the paths, up to the first
    /// violation. In XML each element of a repeated name is checked.
    #[schemars(length(max = 256))]
    pub rules: BTreeMap<String, RuleSpec>,
}

/// What one field must be. Nested rules have the same members, up to 16 deep and 1024 in all.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RuleSpec {
    /// Whether the field must be there and not null.
    pub required: bool,
    /// Type of the value: `string`, `number`, `boolean`, `array` or `object`; any other name means any type.
    #[serde(rename = "type")]
    pub type_: String,
    /// Least value, length in characters, or number of items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Greatest value, length in characters, or number of items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Regular expression a string must match from its start; linear-time syntax (RE2).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub pattern: Option<String>,
    /// Format of a string: `email`, `url`, `date`, `datetime` or `uuid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Allowed values.
    #[serde(rename = "enum", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<AnyValue>>")]
    pub enum_: Option<Vec<serde_json::Value>>,
    /// Rules for the members of an object, by name; each with the members of a rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AnyObject>")]
    pub nested_schema: Option<serde_json::Map<String, serde_json::Value>>,
    /// Rule for each item of an array, with the members of a rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AnyObject>")]
    pub array_items: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Schema of a value of any type.
struct AnyValue;

impl JsonSchema for AnyValue {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AnyValue".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
    }
}

/// Schema of an object whose members are checked elsewhere.
pub(crate) struct AnyObject;

impl JsonSchema for AnyObject {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AnyObject".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
    }
}

/// Who may call an API.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AccessSpec {
    /// Roles that may call; each must exist (a DoormanRole, or the built-in `admin`). Absent or empty: any role.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 50)), extend("x-kubernetes-list-type" = "set"))]
    pub roles: Option<Vec<String>>,
    /// Groups of which the caller must have one; registering gives none. Absent: no group is asked for. Empty: nobody may
    /// call.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 50)), extend("x-kubernetes-list-type" = "set"))]
    pub groups: Option<Vec<String>>,
    /// Rules on the client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpSpec>,
}

/// Rules on the client's address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IpSpec {
    /// `AllowAll` lets everyone in who is not denied; `Whitelist` only what `allow` holds.
    pub mode: IpMode,
    /// Addresses and CIDRs let in under `Whitelist`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), inner(length(min = 2, max = 64)))]
    pub allow: Option<Vec<String>>,
    /// Addresses and CIDRs never let in; looked at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), inner(length(min = 2, max = 64)))]
    pub deny: Option<Vec<String>>,
    /// Whether forwarding headers from trusted proxies name the client. Absent: as the gateway is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_forwarded_for: Option<bool>,
}

/// How the address rules of an API start out.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum IpMode {
    /// Everyone who is not denied.
    AllowAll,
    /// Nobody but the listed.
    Whitelist,
}

/// Cross-origin rules (Fetch standard, CORS protocol).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CorsSpec {
    /// Allowed origins: exact, `*`, or `https://*.example.com`. Absent: any. Empty: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 255)))]
    pub allow_origins: Option<Vec<String>>,
    /// Allowed methods. Absent: all of REST.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 16)))]
    pub allow_methods: Option<Vec<String>>,
    /// Allowed request headers. Absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    pub allow_headers: Option<Vec<String>>,
    /// Whether cookies and authorization may be sent cross-origin. Absent: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,
    /// Response headers scripts may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    pub expose_headers: Option<Vec<String>>,
}

/// Which headers pass the gateway.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HeadersSpec {
    /// Header names that pass in both directions, beside the few that always do; credentials and cookies never pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    pub allowed: Option<Vec<String>>,
    /// Client header (also in `allowed`) whose value becomes the upstream's `Authorization`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub authorization_field_swap: Option<String>,
}

/// How the upstream is called.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamSpec {
    /// Upper bounds of the phases of a call. Absent members: as the gateway is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutsSpec>,
    /// How failed attempts are repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<RetriesSpec>,
    /// When the upstream is left alone after failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreakerSpec>,
    /// TLS towards `https` and `grpcs` servers. Absent: the system's roots, the server's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTlsSpec>,
}

/// Upper bounds in whole milliseconds.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TimeoutsSpec {
    /// Opening a connection, TLS included, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub connect_millis: Option<i32>,
    /// Longest silence of the upstream while its answer is awaited or read, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub read_millis: Option<i32>,
    /// Longest stall of the upstream while the request is sent, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub write_millis: Option<i32>,
    /// Waiting for a pooled connection, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub pool_millis: Option<i32>,
}

/// How failed attempts are repeated.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RetriesSpec {
    /// Extra attempts after a failed one, all methods.
    #[schemars(range(min = 0, max = 10))]
    pub attempts: i32,
}

/// When an upstream is left alone after failures.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CircuitBreakerSpec {
    /// `false` switches the breaker off for this API.
    pub enabled: bool,
    /// Failures in a row that open it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub threshold: Option<i32>,
    /// How long it stays open, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub open_seconds: Option<i32>,
}

/// TLS towards the upstream. In a cluster a Secret is used only if it carries the label `doorman.dev/upstream-tls: "true"`;
/// by a gateway of another namespace only if its annotation `doorman.dev/upstream-tls-gateways` names that gateway too.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamTlsSpec {
    /// Key of a Secret with the CA certificates (PEM) the upstream's certificate must chain to; `ca.crt` when no key is
    /// named. A changed Secret acts on new connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// Secret of type `kubernetes.io/tls` with the client certificate to present. A changed Secret acts on new connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<crate::gateway::SecretRef>,
    /// Name the certificate must be for, instead of the server's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
}

/// Charging of calls.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CreditsSpec {
    /// Whether each call takes one credit.
    pub enabled: bool,
    /// Credit definition the balance is kept under.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 50))]
    pub group: Option<String>,
}

/// Settings for SOAP upstreams.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SoapSpec {
    /// SOAP version: `1.1` or `1.2`. Absent: told from the envelope. Not served by this version (`UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<SoapVersion>,
    /// Path of the WSDL on the upstream, or its URL; the platform API reads it and imports endpoints from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub wsdl_url: Option<String>,
    /// Credentials put into the WS-Security header. Not served by this version (`UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ws_security: Option<WsSecuritySpec>,
}

/// SOAP versions.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum SoapVersion {
    /// SOAP 1.1.
    #[serde(rename = "1.1")]
    V11,
    /// SOAP 1.2.
    #[serde(rename = "1.2")]
    V12,
}

/// WS-Security UsernameToken and Timestamp (OASIS 2004/01).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WsSecuritySpec {
    /// Secret with the keys `username` and `password`.
    pub credentials_secret_ref: crate::gateway::SecretRef,
    /// How the password is sent. Absent: `PasswordText`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_type: Option<PasswordType>,
    /// Whether a timestamp is added. Absent: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_timestamp: Option<bool>,
    /// How long the timestamp is valid, in seconds. Absent: 300.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub timestamp_ttl_seconds: Option<i32>,
}

/// Forms of a UsernameToken password.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum PasswordType {
    /// As it is.
    PasswordText,
    /// SHA-1 digest with nonce and time, as the standard says.
    PasswordDigest,
    /// The same with SHA-256.
    PasswordDigestSHA256,
}

/// Settings for GraphQL upstreams.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GraphqlSpec {
    /// Deepest nesting of a query; 0 means no limit. Absent: 10. Not served by this version (`UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub max_depth: Option<i32>,
    /// Path that the platform API asks the upstream about its schema on. Absent: `/graphql`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub schema_path: Option<String>,
}

/// Settings for gRPC upstreams.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GrpcSpec {
    /// Package of the services. Absent: the call's, else `{name}_{version}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub package: Option<String>,
    /// Packages that may be called. Absent or empty: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 255)))]
    pub allowed_packages: Option<Vec<String>>,
    /// Services that may be called. Absent or empty: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    pub allowed_services: Option<Vec<String>>,
    /// Methods (`Service.Method`) that may be called. Absent or empty: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 257)))]
    pub allowed_methods: Option<Vec<String>>,
    /// ConfigMap key with the `.proto` text of the services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto_config_map_ref: Option<ConfigMapKeyRef>,
    /// `true` asks the upstream's reflection service for types. Absent: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reflection: Option<bool>,
    /// `true` serves gRPC-Web. Absent: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web: Option<bool>,
}

/// One key of a ConfigMap in the object's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Changes to a request or a response.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TransformSpec {
    /// Header changes, within what passes the gateway; what it writes itself can't be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<FieldChanges>,
    /// Query parameter changes; requests only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<FieldChanges>,
    /// JSON body changes. No filter: bodies of other types, compressed ones, answers over 8 MiB and those that a change fails on
    /// pass as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyChanges>,
    /// Other status codes for the client, by the upstream's; JSON responses only. In `requestTransform` it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_map: Option<BTreeMap<String, i32>>,
}

/// Changes to named fields: removed, then renamed, then added.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FieldChanges {
    /// Names to remove, before the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove: Option<Vec<String>>,
    /// New names by old name; after `remove`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rename: Option<BTreeMap<String, String>>,
    /// Values to set by name; after `rename`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add: Option<BTreeMap<String, String>>,
}

/// Changes to a JSON body: wrapped, then removed, renamed and set by path (`$.a.b`, `$.list[0]`).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BodyChanges {
    /// Member to put the whole body under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrap: Option<String>,
    /// Paths to remove, such as `$.a.b` or `$.list[0]`; after `wrap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove: Option<Vec<String>>,
    /// New paths by old path; after `remove`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rename: Option<BTreeMap<String, String>>,
    /// Values to set by path; missing parents are made; after `rename`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BTreeMap<String, AnyValue>>")]
    pub set: Option<BTreeMap<String, serde_json::Value>>,
}

/// What the operator observed of an API.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DoormanApiStatus {
    /// Generation of the spec this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`, `ResolvedRefs`, `Programmed` and `Ready`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Option<Vec<Condition>>,
    /// The gateways that took this API and how far they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace", "name"]))]
    pub gateways: Option<Vec<GatewayProgress>>,
    /// The Secrets the spec names, in the versions this status speaks of. Absent: it names none, or none exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub secrets: Option<Vec<SecretVersion>>,
}

/// One state of a Secret.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretVersion {
    /// Name of the Secret, in the namespace of the API.
    pub name: String,
    /// Its `metadata.resourceVersion`.
    pub resource_version: String,
}

/// How far one gateway is with one generation of an API.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayProgress {
    /// Namespace of the DoormanGateway.
    pub namespace: String,
    /// Name of the DoormanGateway.
    pub name: String,
    /// Ready pods that served this generation when `Programmed` was last decided; the DoormanGateway lists pods live.
    pub acked: i32,
    /// Ready pods of the gateway at that time.
    pub expected: i32,
}
