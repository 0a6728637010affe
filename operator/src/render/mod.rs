//! What the operator makes of a `DoormanGateway`: the interface, before its content.
#![allow(missing_docs)]
use doorman_crds::DoormanGateway;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ApiResource;
#[derive(Clone, Debug)]
pub struct Installation {
    pub image: String,
    pub pull_policy: Option<String>,
    pub namespace: String,
    pub reader_cluster_role: String,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    ServiceAccount,
    RoleBinding,
    ClusterRoleBinding,
    ConfigMap,
    Service,
    NetworkPolicy,
    PodDisruptionBudget,
    Deployment,
}
impl Kind {
    pub fn resource(self) -> ApiResource {
        ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&())
    }
    pub fn is_namespaced(self) -> bool {
        true
    }
}
#[derive(Clone, Debug)]
pub struct Object {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub name: String,
    pub manifest: serde_json::Value,
}
#[derive(Clone, Debug)]
pub struct GeneratedSecret {
    pub metadata: ObjectMeta,
    pub key: String,
}
#[derive(Clone, Debug)]
pub struct NeededKey {
    pub field: &'static str,
    pub secret: String,
    pub key: String,
}
#[derive(Clone, Debug)]
pub struct Rendered {
    pub objects: Vec<Object>,
    pub generated: Vec<GeneratedSecret>,
    pub needed: Vec<NeededKey>,
}
pub fn render(_gateway: &DoormanGateway, _installation: &Installation) -> Rendered {
    Rendered { objects: vec![], generated: vec![], needed: vec![] }
}
pub fn to_yaml(_: &Rendered) -> String {
    String::new()
}
pub const MANAGER: &str = "doorman-operator";
pub const GATEWAY_LABEL: &str = "doorman.dev/gateway";
pub const GATEWAY_NAMESPACE_LABEL: &str = "doorman.dev/gateway-namespace";
