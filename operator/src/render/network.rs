//! The way to the pods: Service, NetworkPolicy, PodDisruptionBudget.

use std::collections::BTreeMap;

use doorman_crds::DoormanGateway;
use doorman_crds::gateway::{ADMIN_PORT, ServiceType};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::settings::{self, traffic_port};
use super::{Installation, Own};

/// Name of the traffic port in pods and Service.
pub(super) fn port_name(gateway: &DoormanGateway) -> &'static str {
    if settings::is_tls(gateway) { "https" } else { "http" }
}

pub(super) fn service(gateway: &DoormanGateway, own: &Own) -> Service {
    let spec = gateway.spec.service.clone().unwrap_or_default();
    let type_ = spec.type_.unwrap_or(ServiceType::ClusterIP);
    let name = port_name(gateway);
    let mut metadata = own.meta();
    metadata.annotations = spec.annotations.filter(|annotations| !annotations.is_empty());
    let port = ServicePort {
        name: Some(name.to_owned()),
        port: spec.port.unwrap_or_else(|| traffic_port(gateway)),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        app_protocol: Some(name.to_owned()),
        node_port: spec.node_port.filter(|_| type_ != ServiceType::ClusterIP),
    };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_.as_str().to_owned()),
            selector: Some(own.selector()),
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Traffic from anywhere; the admin port for the operator and those the spec names.
pub(super) fn policy(gateway: &DoormanGateway, installation: &Installation, own: &Own) -> NetworkPolicy {
    let tcp = |port| {
        Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(port)),
            protocol: Some("TCP".to_owned()),
            ..NetworkPolicyPort::default()
        }])
    };
    let operator = LabelSelector {
        match_labels: Some(BTreeMap::from([(
            "kubernetes.io/metadata.name".to_owned(),
            installation.namespace.clone(),
        )])),
        ..LabelSelector::default()
    };
    let readers = gateway.spec.network_policy.as_ref().and_then(|policy| policy.metrics_from.clone());
    let peers = [operator]
        .into_iter()
        .chain(readers)
        .map(|namespaces| NetworkPolicyPeer { namespace_selector: Some(namespaces), ..NetworkPolicyPeer::default() });
    NetworkPolicy {
        metadata: own.meta(),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(own.label_selector()),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { ports: tcp(traffic_port(gateway)), from: None },
                NetworkPolicyIngressRule { ports: tcp(i32::from(ADMIN_PORT)), from: Some(peers.collect()) },
            ]),
            egress: None,
        }),
    }
}

pub(super) fn budget(gateway: &DoormanGateway, own: &Own) -> PodDisruptionBudget {
    let most = gateway.spec.pdb.as_ref().and_then(|pdb| pdb.max_unavailable.clone());
    PodDisruptionBudget {
        metadata: own.meta(),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(most.unwrap_or(IntOrString::Int(1))),
            selector: Some(own.label_selector()),
            // A pod that does not serve must not keep a node from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
