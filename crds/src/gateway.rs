//! `DoormanGateway`: a fleet of gateway pods and everything it is configured with.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, EnvVar, LocalObjectReference, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::FieldError;
use crate::api::AnyObject;

/// Port of metrics and revision reports in the pods.
pub const ADMIN_PORT: u16 = 9090;
const GRACE_SECONDS: i64 = 60;
const DRAIN: &str = "DOORMAN_DRAIN_SECONDS";
const SHUTDOWN: &str = "DOORMAN_SHUTDOWN_SECONDS";
const DRAIN_SECONDS: f64 = 5.0;
const STOP_MARGIN_SECONDS: f64 = 2.0;

/// A fleet of gateway pods: how many, what they listen on, where their state lives, and which APIs they serve.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "doorman.dev",
    version = "v1alpha1",
    kind = "DoormanGateway",
    plural = "doormangateways",
    singular = "doormangateway",
    shortname = "dgw",
    category = "doorman",
    namespaced,
    status = "DoormanGatewayStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Ready Pods", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "APIs", type_ = "integer", json_path = ".status.apis"),
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
    validation = ("self.storage.mode != 'Memory' || !has(self.replicas) || self.replicas <= 1", "memory storage lives in one process: set spec.replicas to 1 or spec.storage.mode to External"),
    validation = ("self.storage.mode != 'Memory' || !has(self.autoscaling)", "memory storage lives in one process: remove spec.autoscaling or set spec.storage.mode to External"),
    validation = ("!(has(self.replicas) && has(self.autoscaling))", "set spec.replicas or spec.autoscaling, not both")
)]
pub struct DoormanGatewaySpec {
    /// Number of pods. Absent: 1, or what `autoscaling` decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Scales the number of pods with load instead of a fixed `replicas`. Not served by this version (`UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingSpec>,
    /// Image of the gateway. Absent: the one the operator was installed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// What the pods listen on. Absent: plain HTTP on port 5001.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listeners: Option<ListenersSpec>,
    /// Where users, limits and other state live.
    pub storage: StorageSpec,
    /// Keys that sign tokens and encrypt stored secrets. Absent: generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeysSpec>,
    /// The first administrator. Absent: `admin@doorman.dev` with a generated password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<AdminSpec>,
    /// Which DoormanApi and DoormanRole objects this gateway takes. Absent: those of its own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apis: Option<ApisSpec>,
    /// The management REST API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformSpec>,
    /// Upper bounds on requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
    /// Logs, metrics and traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observability: Option<ObservabilitySpec>,
    /// Further settings of the gateway by their environment names, e.g. `HTTP_READ_TIMEOUT`; secrets don't belong here.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub settings: Option<BTreeMap<String, String>>,
    /// Additions to the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplateOverrides>,
    /// The Service in front of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSpec>,
    /// Who may reach the pods. Absent: anyone on the traffic port, the operator on the admin port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicySpec>,
    /// How many pods voluntary disruptions may take at once. Absent: one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pdb: Option<PdbSpec>,
}

/// Bounds and target of a HorizontalPodAutoscaler.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.minReplicas <= self.maxReplicas", "minReplicas must not exceed maxReplicas"))]
pub struct AutoscalingSpec {
    /// Fewest pods.
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    /// Most pods.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// Average CPU use of the pods to aim for, in percent of their request. Absent: 70.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub target_cpu_percent: Option<i32>,
}

/// An image and how it is pulled.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Reference of the image, e.g. `ghcr.io/doorman-dev/doorman-gateway:0.1.0`.
    #[schemars(length(min = 1, max = 512))]
    pub reference: String,
    /// When the image is pulled. Absent: as Kubernetes decides by the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Secrets with registry credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_secrets: Option<Vec<LocalObjectReference>>,
}

/// When an image is pulled.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum PullPolicy {
    /// At every start of a pod.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never; it must be on the node.
    Never,
}

/// What the pods listen on.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!(has(self.tls) && has(self.behindProxy) && self.behindProxy)", "TLS ends either here (tls) or at a proxy (behindProxy), not at both"))]
pub struct ListenersSpec {
    /// Port of data plane and platform API in the pods. Absent: 5001.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 65535))]
    pub port: Option<i32>,
    /// TLS on that port; the Secret is followed, a renewed certificate needs no restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTlsSpec>,
    /// `true` when a proxy in front ends TLS: plain listener, secure cookies and CSRF checks. Absent: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind_proxy: Option<bool>,
}

/// TLS on a listener.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTlsSpec {
    /// Secret of type `kubernetes.io/tls`.
    pub secret_ref: SecretRef,
}

/// A Secret in the object's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// One key of a Secret in the object's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its data. Absent: the usual key for this use, named there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

/// Where state lives.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.mode != 'External' || (has(self.redis) && has(self.mongo))", "External storage needs storage.redis and storage.mongo"),
    validation = ("self.mode != 'External' || !has(self.dumps)", "dumps belong to Memory storage")
)]
pub struct StorageSpec {
    /// `Memory`: in the one pod, and gone with it. `External`: MongoDB and Redis, any number of pods.
    pub mode: StorageMode,
    /// Redis for counters, revocations and cache invalidation; needed with `External`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisSpec>,
    /// MongoDB for documents; needed with `External`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mongo: Option<MongoSpec>,
    /// Where and how often memory is dumped. Not served by this version (`UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dumps: Option<DumpsSpec>,
}

/// Where state lives.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum StorageMode {
    /// In the one pod.
    Memory,
    /// In MongoDB and Redis.
    External,
}

/// How to reach Redis.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.mode != 'Sentinel' || has(self.masterName)", "Sentinel mode needs masterName"),
    validation = ("self.mode == 'Sentinel' || (!has(self.masterName) && !has(self.sentinelUsername) && !has(self.sentinelPasswordSecretRef))", "masterName, sentinelUsername and sentinelPasswordSecretRef belong to Sentinel mode"),
    validation = ("self.mode != 'Standalone' || self.hosts.size() == 1", "Standalone mode has one host"),
    validation = ("self.mode != 'Cluster' || !has(self.db) || self.db == 0", "a cluster has only database 0"),
    validation = ("!has(self.username) || has(self.passwordSecretRef)", "username goes with passwordSecretRef"),
    validation = ("!has(self.sentinelUsername) || has(self.sentinelPasswordSecretRef)", "sentinelUsername goes with sentinelPasswordSecretRef"),
    validation = ("(has(self.tls) && self.tls) || (!has(self.caSecretRef) && !has(self.clientCertificateSecretRef))", "caSecretRef and clientCertificateSecretRef go with tls: true")
)]
pub struct RedisSpec {
    /// Shape of the Redis installation.
    pub mode: RedisMode,
    /// `host:port` of the server, of the sentinels, or of some cluster nodes.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 260)))]
    pub hosts: Vec<String>,
    /// Database number; must be 0 in a cluster. Absent: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1023))]
    pub db: Option<i32>,
    /// Name of the master the sentinels watch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub master_name: Option<String>,
    /// `true` connects by TLS, to Sentinels too. Absent: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// Secret with the authorities the servers are trusted by; key `ca.crt` unless named. Absent: those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// Secret of type `kubernetes.io/tls` with the certificate that is shown to the servers. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<SecretRef>,
    /// User of the access control list. Absent: the default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub username: Option<String>,
    /// Secret with the password; key `password` unless named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,
    /// User of the Sentinels. Absent: the default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub sentinel_username: Option<String>,
    /// Secret with the password of the Sentinels; key `password` unless named. Absent: they ask for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_password_secret_ref: Option<SecretKeyRef>,
}

/// Shapes of a Redis installation.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum RedisMode {
    /// One server.
    Standalone,
    /// A master watched by sentinels.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

/// How to reach MongoDB.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.hosts) != has(self.uriSecretRef)", "set either mongo.hosts or mongo.uriSecretRef"),
    validation = ("!has(self.uriSecretRef) || (!has(self.replicaSet) && !has(self.credentialsSecretRef) && !has(self.authSource))", "with uriSecretRef the URI says replica set and credentials"),
    validation = ("!has(self.authSource) || has(self.credentialsSecretRef)", "authSource goes with credentialsSecretRef"),
    validation = ("has(self.uriSecretRef) || (has(self.tls) && self.tls) || (!has(self.caSecretRef) && !has(self.clientCertificateSecretRef))", "caSecretRef and clientCertificateSecretRef go with tls: true"),
    validation = ("!has(self.maxPoolSize) || !has(self.minPoolSize) || self.minPoolSize <= self.maxPoolSize", "minPoolSize must not exceed maxPoolSize")
)]
pub struct MongoSpec {
    /// `host:port` of the members.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 260)))]
    pub hosts: Option<Vec<String>>,
    /// Secret with a whole connection string; key `uri` unless named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri_secret_ref: Option<SecretKeyRef>,
    /// Name of the replica set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub replica_set: Option<String>,
    /// Secret with the keys `username` and `password`. Absent: no login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
    /// Database that knows the user. Absent: `doorman`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub auth_source: Option<String>,
    /// `true` connects by TLS. Absent: false, or as the URI says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// Secret with the authorities the servers are trusted by; key `ca.crt` unless named. Absent: the well-known ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// Secret with the certificate that is shown to the servers and its key, as one PEM text; key `tls-combined.pem`
    /// unless named. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<SecretKeyRef>,
    /// Most connections of a pod to each server. Absent: 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_pool_size: Option<i32>,
    /// Connections of a pod that are kept open to each server. Absent: 5, or `maxPoolSize` if that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_pool_size: Option<i32>,
}

/// Where and how often memory is dumped.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DumpsSpec {
    /// Size of the volume dumps are kept on, e.g. `1Gi`.
    #[schemars(length(min = 1, max = 32))]
    pub size: String,
    /// Storage class of the volume. Absent: the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// Time between dumps in seconds, at least 60. Absent: only at a stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 86_400))]
    pub every_seconds: Option<i32>,
}

/// Key material of a fleet.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KeysSpec {
    /// Secret with the keys of tokens. Each key of its data is one, or only the named one; `active` tells which signs.
    /// See "Rotating keys" in docs/operations.md. Absent: generated, with the one key `JWT_SECRET_KEY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<KeySource>,
    /// Secret with the key that encrypts stored upstream keys; key `TOKEN_ENCRYPTION_KEY` unless named. Absent: generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_encryption: Option<KeySource>,
    /// Secret with the key that encrypts memory dumps; key `MEM_ENCRYPTION_KEY` unless named. Absent: generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_encryption: Option<KeySource>,
    /// When generated keys are replaced. Absent: never by themselves. Not served by this version (`UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationSpec>,
}

/// Where a key comes from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KeySource {
    /// Secret that holds the key.
    pub secret_ref: SecretKeyRef,
}

/// When generated keys are replaced.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RotationSpec {
    /// Time between rotations, in days.
    #[schemars(range(min = 1, max = 3650))]
    pub every_days: i32,
    /// How long the previous key stays valid, in days. Absent: as long as the longest-lived token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 365))]
    pub overlap_days: Option<i32>,
}

/// The first administrator.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AdminSpec {
    /// E-mail to sign in with. Absent: `admin@doorman.dev`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 127))]
    pub email: Option<String>,
    /// Secret with the password, at least 12 characters; key `DOORMAN_ADMIN_PASSWORD` unless named. Absent: generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,
}

/// Which objects a gateway takes.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.namespaceSelector) || (has(self.namespaces) && self.namespaces == 'Selector')", "namespaceSelector goes with namespaces: Selector"))]
pub struct ApisSpec {
    /// Namespaces objects are taken from. Absent: `Same`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Namespaces>,
    /// Labels of the namespaces, with `namespaces: Selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of the objects. Absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// Namespaces objects are taken from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum Namespaces {
    /// The gateway's own.
    #[default]
    Same,
    /// All.
    All,
    /// Those with the labels of `namespaceSelector`.
    Selector,
}

/// A gateway an object names.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayRef {
    /// Name of the DoormanGateway.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace. Absent: the object's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
}

/// The management REST API.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlatformSpec {
    /// Where `/platform` is served. Absent: `SamePort`, all that this version serves (others: `UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expose: Option<Expose>,
    /// Whether `/platform` may write DoormanApi and DoormanRole objects. Absent: `ReadOnly`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definitions: Option<Definitions>,
    /// Cross-origin rules of `/platform`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<PlatformCorsSpec>,
    /// `Domain` of the session cookies. Absent: the host they were set on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 253))]
    pub cookie_domain: Option<String>,
}

/// Where `/platform` is served.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum Expose {
    /// On the port of the data plane.
    SamePort,
    /// On a port of its own, 5002.
    OwnPort,
    /// Nowhere.
    Off,
}

/// Whether `/platform` may write definitions.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum Definitions {
    /// It may; the objects it writes are in the gateway's namespace, and labelled as its own. Those of others stay theirs: 409.
    ReadWrite,
    /// It may not: 409.
    ReadOnly,
}

/// Cross-origin rules of `/platform`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlatformCorsSpec {
    /// Allowed origins. Absent: any, but see `strict`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 255)))]
    pub allow_origins: Option<Vec<String>>,
    /// `true`: with any origin and credentials, only origins on `localhost` and `127.0.0.1` are allowed. Absent: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// Whether cookies may be sent cross-origin. Absent: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,
}

/// Upper bounds on requests.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Largest request body in bytes. Absent: 1048576.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_body_bytes: Option<i64>,
    /// Largest body of REST calls in bytes. Absent: as `maxBodyBytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_body_bytes_rest: Option<i64>,
    /// Largest body of SOAP calls in bytes. Absent: as `maxBodyBytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_body_bytes_soap: Option<i64>,
    /// Largest body of GraphQL calls in bytes. Absent: as `maxBodyBytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_body_bytes_graphql: Option<i64>,
    /// Largest body of gRPC calls in bytes. Absent: as `maxBodyBytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_body_bytes_grpc: Option<i64>,
    /// Largest upload in bytes. Absent: 10485760.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_multipart_bytes: Option<i64>,
    /// What limits do while Redis can't be reached: `Open` counts in each pod, `Closed` refuses. Credits are always closed. Absent: `Open`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_mode: Option<FailMode>,
}

/// What limits do without their store.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum FailMode {
    /// Each pod counts for itself.
    Open,
    /// Calls are refused.
    Closed,
}

/// Logs, metrics and traces.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ObservabilitySpec {
    /// Form of log lines. Absent: `json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    /// Least level that is logged. Absent: `INFO`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    /// OpenTelemetry export. Not served by this version (`UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<OtlpSpec>,
    /// Prometheus scraping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsSpec>,
}

/// Form of log lines.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(transform = crate::undescribed)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text.
    Plain,
}

/// Log levels.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(transform = crate::undescribed)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What happens.
    Info,
    /// What may need attention.
    Warning,
    /// What failed.
    Error,
    /// What stops the service.
    Critical,
}

impl LogLevel {
    /// The word `LOG_LEVEL` takes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        }
    }
}

/// OpenTelemetry export.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OtlpSpec {
    /// URL of the collector.
    #[schemars(length(min = 1, max = 512))]
    pub endpoint: String,
    /// Share of requests that are traced, in percent. Absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub sample_percent: Option<i32>,
}

/// Prometheus scraping.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MetricsSpec {
    /// `true` renders a PodMonitor when the cluster knows that kind. Absent: false. `true` is not
    /// served by this version (`UnsupportedValue`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_monitor: Option<bool>,
}

/// Additions to the pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplateOverrides {
    /// Labels added to the pods; the operator's own win.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations added to the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// CPU and memory of the gateway container. Absent: requests of 100m and 64Mi, a memory limit of 512Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Node labels the pods need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints the pods tolerate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,
    /// Scheduling rules, as in a pod's `spec.affinity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AnyObject>")]
    pub affinity: Option<serde_json::Map<String, serde_json::Value>>,
    /// Priority class of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Environment variables added to the gateway container; the operator's own win.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<EnvVar>>,
    /// How long a pod may take to stop, in seconds. Absent: 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 3600))]
    pub termination_grace_period_seconds: Option<i64>,
}

/// The Service in front of the pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Type of the Service. Absent: `ClusterIP`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<ServiceType>,
    /// Port of the Service. Absent: that of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Node port with `NodePort` or `LoadBalancer`. Absent: chosen by the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,
    /// Annotations of the Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// Types of a Service.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = crate::undescribed)]
pub enum ServiceType {
    /// Inside the cluster.
    ClusterIP,
    /// On a port of every node.
    NodePort,
    /// Behind the cloud's load balancer.
    LoadBalancer,
}

impl ServiceType {
    /// The word Kubernetes uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Who may reach the pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// `false` renders no NetworkPolicy. Absent: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Labels of the namespaces whose pods may reach the admin port, beside the operator's. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_from: Option<LabelSelector>,
}

/// How many pods voluntary disruptions may take at once.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PdbSpec {
    /// `false` renders no PodDisruptionBudget. Absent: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Pods that may be away at once, a number or a percentage. Absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
}

/// What the operator observed of a fleet.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DoormanGatewayStatus {
    /// Generation of the spec this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`, `KeysReady`, `StorageReachable`, `Progressing`, `Available`, `Programmed` and `Ready`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Option<Vec<Condition>>,
    /// Pods that exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Pods that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Label selector of the pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Number of DoormanApi objects this gateway takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apis: Option<i32>,
    /// Ready pods that do not serve the wanted revision, at most 20; empty when all do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub lagging_pods: Option<Vec<LaggingPod>>,
}

/// A ready pod that does not serve the wanted revision.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LaggingPod {
    /// Name of the pod.
    pub name: String,
    /// Why: `Behind` (serves an older revision) or `Unreachable` (does not answer on its admin port).
    pub reason: String,
}

/// Checks what API server and schema can't, or a folder has not been checked for; empty result means valid.
pub fn validate(spec: &DoormanGatewaySpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if spec.storage.mode == StorageMode::Memory && spec.replicas.unwrap_or(1) > 1 {
        errors.push(FieldError::invalid(
            "spec.replicas",
            "memory storage lives in one process: use 1 or External storage",
        ));
    }
    let unsupported = [
        (spec.keys.as_ref().is_some_and(|keys| keys.rotation.is_some()), "spec.keys.rotation"),
        (spec.storage.dumps.is_some(), "spec.storage.dumps"),
        (spec.observability.as_ref().is_some_and(|o| o.otlp.is_some()), "spec.observability.otlp"),
        (
            spec.observability.as_ref().and_then(|o| o.metrics.as_ref()).is_some_and(|m| m.pod_monitor == Some(true)),
            "spec.observability.metrics.podMonitor",
        ),
        (spec.autoscaling.is_some(), "spec.autoscaling"),
        (
            spec.platform.as_ref().is_some_and(|p| p.expose.is_some_and(|expose| expose != Expose::SamePort)),
            "spec.platform.expose",
        ),
    ];
    for (_, field) in unsupported.iter().filter(|(present, _)| *present) {
        errors.push(FieldError::unsupported(*field, "not served by this version; remove the field"));
    }
    if spec.listeners.as_ref().and_then(|listeners| listeners.port) == Some(i32::from(ADMIN_PORT)) {
        errors.push(FieldError::invalid("spec.listeners.port", "9090 is the admin port of the pods; choose another"));
    }
    let pods = spec.pod_template.clone().unwrap_or_default();
    if let Some(affinity) = pods.affinity
        && let Err(error) = serde_json::from_value::<Affinity>(affinity.into())
    {
        errors.push(FieldError::invalid("spec.podTemplate.affinity", format!("not the affinity of a pod: {error}")));
    }
    for name in spec.settings.iter().flatten().map(|(name, _)| name) {
        errors.extend(misplaced(name, format!("spec.settings.{name}")));
    }
    for variable in pods.env.iter().flatten() {
        errors.extend(misplaced(&variable.name, format!("spec.podTemplate.env[{}]", variable.name)));
    }
    errors.extend(stop_errors(spec));
    errors
}

/// A setting that has another place, or none.
fn misplaced(name: &str, field: String) -> Option<FieldError> {
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Some(FieldError::invalid(field, "not the name of an environment variable"));
    }
    let setting = name.strip_suffix("_FILE").filter(|setting| place_of(setting).is_some()).unwrap_or(name);
    let place = place_of(setting)?;
    let reason = if place.is_empty() {
        "the operator decides this setting; remove it".to_owned()
    } else {
        format!("set {place} instead")
    };
    Some(FieldError::invalid(field, reason))
}

/// Where in the spec a setting of the gateway is decided; empty: nowhere, the operator decides. `None`: it is free.
pub fn place_of(setting: &str) -> Option<&'static str> {
    Some(match setting {
        "DOORMAN_GATEWAY_NAME" | "DOORMAN_GATEWAY_NAMESPACE" | "DOORMAN_SNAPSHOT_DIR" | "DOORMAN_ADMIN_PORT" => "",
        "THREADS" => "spec.replicas",
        "DOORMAN_APIS_NAMESPACES" => "spec.apis.namespaces",
        "DOORMAN_APIS_NAMESPACE_SELECTOR" => "spec.apis.namespaceSelector",
        "DOORMAN_APIS_SELECTOR" => "spec.apis.selector",
        "PORT" => "spec.listeners.port",
        "ENV" => "spec.listeners.tls or behindProxy, which mean production,",
        "HTTPS_ONLY" | "SSL_CERTFILE" | "SSL_KEYFILE" => "spec.listeners.tls",
        "HTTPS_ENABLED" => "spec.listeners.behindProxy",
        "MEM_OR_EXTERNAL" | "MEM_OR_REDIS" => "spec.storage.mode",
        "REDIS_HOST" | "REDIS_PORT" => "spec.storage.redis.hosts",
        "REDIS_DB" => "spec.storage.redis.db",
        "REDIS_TLS" => "spec.storage.redis.tls",
        "REDIS_TLS_CA_FILE" => "spec.storage.redis.caSecretRef",
        "REDIS_TLS_CERT_FILE" | "REDIS_TLS_KEY_FILE" => "spec.storage.redis.clientCertificateSecretRef",
        "REDIS_USERNAME" => "spec.storage.redis.username",
        "REDIS_PASSWORD" => "spec.storage.redis.passwordSecretRef",
        "REDIS_CLUSTER" | "REDIS_SENTINEL_HOSTS" => "spec.storage.redis.mode",
        "REDIS_SENTINEL_MASTER" => "spec.storage.redis.masterName",
        "REDIS_SENTINEL_USERNAME" => "spec.storage.redis.sentinelUsername",
        "REDIS_SENTINEL_PASSWORD" => "spec.storage.redis.sentinelPasswordSecretRef",
        "DOORMAN_LIMITS_FAIL_MODE" => "spec.limits.failMode",
        "MONGO_DB_HOSTS" => "spec.storage.mongo.hosts",
        "MONGO_REPLICA_SET_NAME" => "spec.storage.mongo.replicaSet",
        "MONGO_DB_URI" => "spec.storage.mongo.uriSecretRef",
        "MONGO_DB_USER" | "MONGO_DB_PASSWORD" => "spec.storage.mongo.credentialsSecretRef",
        "JWT_SECRET_KEY" | "JWT_KEYS" | "DOORMAN_JWT_KEYS_DIR" => "spec.keys.jwt",
        "MONGO_DB_AUTH_SOURCE" => "spec.storage.mongo.authSource",
        "MONGO_DB_TLS" => "spec.storage.mongo.tls",
        "MONGO_DB_TLS_CA_FILE" => "spec.storage.mongo.caSecretRef",
        "MONGO_DB_TLS_CERT_KEY_FILE" => "spec.storage.mongo.clientCertificateSecretRef",
        "MONGO_DB_MAX_POOL_SIZE" => "spec.storage.mongo.maxPoolSize",
        "MONGO_DB_MIN_POOL_SIZE" => "spec.storage.mongo.minPoolSize",
        "TOKEN_ENCRYPTION_KEY" => "spec.keys.tokenEncryption",
        "MEM_ENCRYPTION_KEY" => "spec.keys.memoryEncryption",
        "DOORMAN_ADMIN_EMAIL" => "spec.admin.email",
        "DOORMAN_ADMIN_PASSWORD" => "spec.admin.passwordSecretRef",
        "ALLOWED_ORIGINS" => "spec.platform.cors.allowOrigins",
        "CORS_STRICT" => "spec.platform.cors.strict",
        "ALLOW_CREDENTIALS" => "spec.platform.cors.allowCredentials",
        "COOKIE_DOMAIN" => "spec.platform.cookieDomain",
        "DOORMAN_PLATFORM_DEFINITIONS" => "spec.platform.definitions",
        "MAX_BODY_SIZE_BYTES" => "spec.limits.maxBodyBytes",
        "MAX_BODY_SIZE_BYTES_REST" => "spec.limits.maxBodyBytesRest",
        "MAX_BODY_SIZE_BYTES_SOAP" => "spec.limits.maxBodyBytesSoap",
        "MAX_BODY_SIZE_BYTES_GRAPHQL" => "spec.limits.maxBodyBytesGraphql",
        "MAX_BODY_SIZE_BYTES_GRPC" => "spec.limits.maxBodyBytesGrpc",
        "MAX_MULTIPART_SIZE_BYTES" => "spec.limits.maxMultipartBytes",
        "LOG_FORMAT" => "spec.observability.logFormat",
        "LOG_LEVEL" => "spec.observability.logLevel",
        _ => return None,
    })
}

/// How long a pod may take to stop, in seconds.
pub fn grace_seconds(spec: &DoormanGatewaySpec) -> i64 {
    spec.pod_template.as_ref().and_then(|pods| pods.termination_grace_period_seconds).unwrap_or(GRACE_SECONDS)
}

/// How long a stopping pod still accepts requests, and how long it then waits for those in flight, in seconds: as
/// the settings say, else what fits the time it has to stop.
pub fn stop_seconds(spec: &DoormanGatewaySpec) -> (f64, f64) {
    let grace = grace_seconds(spec) as f64;
    let drain = stop_setting(spec, DRAIN).unwrap_or_else(|| (grace / 5.0).min(DRAIN_SECONDS).floor());
    let shutdown = stop_setting(spec, SHUTDOWN).unwrap_or_else(|| (grace - drain - STOP_MARGIN_SECONDS).max(1.0));
    (drain, shutdown)
}

fn stop_setting(spec: &DoormanGatewaySpec, name: &str) -> Option<f64> {
    let text = spec.settings.as_ref()?.get(name)?;
    text.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0)
}

fn stop_errors(spec: &DoormanGatewaySpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for name in [DRAIN, SHUTDOWN] {
        let is_set = spec.settings.as_ref().is_some_and(|settings| settings.contains_key(name));
        if is_set && stop_setting(spec, name).is_none() {
            errors.push(FieldError::invalid(format!("spec.settings.{name}"), "not a number of seconds"));
        }
    }
    let ((drain, shutdown), grace) = (stop_seconds(spec), grace_seconds(spec));
    if drain + shutdown >= grace as f64 {
        let reason = format!("{grace} s are not enough for {drain} s of {DRAIN} and {shutdown} s of {SHUTDOWN}");
        errors.push(FieldError::invalid("spec.podTemplate.terminationGracePeriodSeconds", reason));
    }
    errors
}
