//! What a `DoormanGateway` consists of, as a pure function of its spec and of how the operator was installed.

mod access;
mod network;
mod pods;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use doorman_crds::DoormanGateway;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Resource;
use kube::api::ApiResource;
use serde::Serialize;
use sha2::{Digest, Sha256};

use self::settings::Settings;

/// Field manager of everything the operator writes, and the value of `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "doorman-operator";
/// Annotation that names the gateway, as `namespace/name`, an object without an owner reference belongs to.
pub const GATEWAY_ANNOTATION: &str = "doorman.dev/gateway";

/// Longest name that objects get; leaves room for the longest suffix of a Secret within a DNS label of 63.
const MAX_NAME: usize = 44;

/// What the operator was installed with.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Image of the gateway where a spec names none.
    pub image: String,
    /// When that image is pulled.
    pub pull_policy: Option<String>,
    /// Namespace of the operator.
    pub namespace: String,
    /// ClusterRole that lets a gateway read its definitions.
    pub reader_cluster_role: String,
    /// ClusterRole that lets a gateway write definitions.
    pub writer_cluster_role: String,
}

/// Kinds of rendered objects, in the order they are applied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Who the pods are.
    ServiceAccount,
    /// What the pods may read of Secrets that APIs name.
    Role,
    /// Lets the pods read, and where the spec says so write, definitions in the gateway's namespace; or read such Secrets.
    RoleBinding,
    /// Lets the pods read definitions in all namespaces.
    ClusterRoleBinding,
    /// Settings of the pods.
    ConfigMap,
    /// The way to the pods.
    Service,
    /// Who may reach the pods.
    NetworkPolicy,
    /// How many pods may be away.
    PodDisruptionBudget,
    /// The pods.
    Deployment,
}

impl Kind {
    /// How the API server calls it.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::Role => ApiResource::erase::<Role>(&()),
            Self::RoleBinding => ApiResource::erase::<RoleBinding>(&()),
            Self::ClusterRoleBinding => ApiResource::erase::<ClusterRoleBinding>(&()),
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
        }
    }
}

/// An object for server-side apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Its namespace, unless it belongs to the cluster.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// All of it.
    pub manifest: serde_json::Value,
}

/// A Secret with one random key; created when absent, never overwritten.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedSecret {
    /// Name, namespace, labels and owner.
    pub metadata: ObjectMeta,
    /// Key of the random text.
    pub key: String,
}

/// A key of a Secret without which the pods don't start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededKey {
    /// Field of the spec that asks for it.
    pub field: &'static str,
    /// Name of the Secret.
    pub secret: String,
    /// Key in its data; `None`: any will do.
    pub key: Option<String>,
}

/// Names of Secrets that a gateway may read, by namespace.
pub type Secrets = BTreeMap<String, BTreeSet<String>>;

/// The right to read Secrets of one namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// The namespace.
    pub namespace: String,
    /// Role and binding.
    pub objects: Vec<Object>,
}

/// Everything a gateway consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// What is applied, in order.
    pub objects: Vec<Object>,
    /// What is created when it is absent.
    pub generated: Vec<GeneratedSecret>,
    /// What must be there for the pods to start.
    pub needed: Vec<NeededKey>,
    /// What APIs need beside; it fails for their namespace only.
    pub grants: Vec<Grant>,
}

impl Rendered {
    /// All objects, of the gateway and of its grants.
    pub fn all(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().chain(self.grants.iter().flat_map(|grant| &grant.objects))
    }
}

/// Renders a gateway whose spec is valid (`doorman_crds::gateway::validate`), and which may read these Secrets.
pub fn render(gateway: &DoormanGateway, installation: &Installation, secrets: &Secrets) -> Rendered {
    let own = Own::new(gateway);
    let settings = settings::of(gateway, &own);
    let is_pdb = gateway.spec.pdb.as_ref().and_then(|pdb| pdb.enabled).unwrap_or(true);
    let is_policy = gateway.spec.network_policy.as_ref().and_then(|policy| policy.enabled).unwrap_or(true);
    let config_map = ConfigMap { metadata: own.meta(), data: Some(settings.plain.clone()), ..ConfigMap::default() };
    let mut objects = vec![
        object(Kind::ServiceAccount, &access::service_account(&own)),
        access::binding(gateway, installation, &own),
    ];
    objects.extend(access::writer_binding(gateway, installation, &own));
    objects.push(object(Kind::ConfigMap, &config_map));
    objects.push(object(Kind::Service, &network::service(gateway, &own)));
    if is_policy {
        objects.push(object(Kind::NetworkPolicy, &network::policy(gateway, installation, &own)));
    }
    if is_pdb {
        objects.push(object(Kind::PodDisruptionBudget, &network::budget(gateway, &own)));
    }
    objects.push(object(Kind::Deployment, &pods::deployment(gateway, installation, &own, &settings)));
    let Settings { generated, needed, .. } = settings;
    let grants = secrets.iter().map(|(namespace, secrets)| access::grant(&own, namespace, secrets)).collect();
    Rendered { objects, generated, needed, grants }
}

/// The objects as one YAML stream; generated Secrets, whose content nobody knows yet, are named in comments.
pub fn to_yaml(rendered: &Rendered) -> String {
    let mut text = String::new();
    for secret in &rendered.generated {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        // Writing to a String can't fail.
        let _ = writeln!(text, "# Secret {name} with a random {} is created when it is absent.", secret.key);
    }
    for object in rendered.all() {
        text.push_str("---\n");
        text.push_str(&serde_yaml::to_string(&object.manifest).unwrap_or_default());
    }
    text
}

/// What all objects of one gateway have in common.
struct Own {
    /// Name of the objects: the gateway's, made short and plain where it has to be.
    name: String,
    /// Namespace of the gateway and of its objects.
    namespace: String,
    /// Name of the gateway itself.
    gateway: String,
    owner: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>,
}

impl Own {
    fn new(gateway: &DoormanGateway) -> Self {
        let full = gateway.metadata.name.clone().unwrap_or_default();
        Self {
            name: object_name(&full),
            namespace: gateway.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            owner: gateway.controller_owner_ref(&()),
            gateway: full,
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert("app.kubernetes.io/component".to_owned(), "gateway".to_owned());
        labels.insert("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned());
        labels
    }

    /// Labels that tell this gateway's pods from all others; a Deployment's can never change.
    fn selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("app.kubernetes.io/name".to_owned(), "doorman-gateway".to_owned()),
            ("app.kubernetes.io/instance".to_owned(), self.name.clone()),
        ])
    }

    fn label_selector(&self) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selector()), ..LabelSelector::default() }
    }

    fn meta(&self) -> ObjectMeta {
        self.meta_named(self.name.clone())
    }

    fn meta_named(&self, name: String) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels()),
            owner_references: self.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    /// In another namespace, or in none. An owner in a namespace can't own what is outside of it: the annotation tells
    /// whose it is.
    fn meta_elsewhere(&self, namespace: Option<&str>) -> ObjectMeta {
        let whose = format!("{}/{}", self.namespace, self.gateway);
        ObjectMeta {
            name: Some(format!("doorman-gateway:{}:{}", self.namespace, self.name)),
            namespace: namespace.map(str::to_owned),
            labels: Some(self.labels()),
            annotations: Some(BTreeMap::from([(GATEWAY_ANNOTATION.to_owned(), whose)])),
            ..ObjectMeta::default()
        }
    }
}

fn object<K: Resource + Serialize>(kind: Kind, object: &K) -> Object {
    Object {
        kind,
        namespace: object.meta().namespace.clone(),
        name: object.meta().name.clone().unwrap_or_default(),
        // The types of Kubernetes have text keys and finite numbers only.
        manifest: serde_json::to_value(object).unwrap_or_default(),
    }
}

/// The name objects of a gateway get: its own when that is a short DNS label (RFC 1035), else a shortened form with a hash.
fn object_name(gateway: &str) -> String {
    let is_letter_first = gateway.starts_with(|first: char| first.is_ascii_lowercase());
    if gateway.len() <= MAX_NAME && is_letter_first && !gateway.contains('.') {
        return gateway.to_owned();
    }
    let hash = hash(gateway.as_bytes());
    let plain: String = gateway.chars().map(|c| if c == '.' { '-' } else { c }).collect();
    let prefix = if is_letter_first { "" } else { "g-" };
    let room = MAX_NAME - prefix.len() - 1 - hash.len();
    let short: String = plain.chars().take(room).collect();
    format!("{prefix}{}-{hash}", short.trim_end_matches('-'))
}

/// Short, stable, and different for different content.
fn hash(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().take(5).fold(String::with_capacity(10), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
