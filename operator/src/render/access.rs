//! Who the pods are and what they may read.

use std::collections::BTreeMap;

use doorman_crds::DoormanGateway;
use doorman_crds::gateway::{Definitions, Namespaces};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{GATEWAY_ANNOTATION, Installation, Kind, Object, Own, object};

pub(super) fn service_account(own: &Own) -> ServiceAccount {
    // The pods ask for the token themselves; nothing else that runs under this account gets one.
    ServiceAccount { metadata: own.meta(), automount_service_account_token: Some(false), ..ServiceAccount::default() }
}

fn role(name: &str) -> RoleRef {
    RoleRef { api_group: "rbac.authorization.k8s.io".to_owned(), kind: "ClusterRole".to_owned(), name: name.to_owned() }
}

fn subject(own: &Own) -> Subject {
    Subject {
        kind: "ServiceAccount".to_owned(),
        name: own.name.clone(),
        namespace: Some(own.namespace.clone()),
        ..Subject::default()
    }
}

/// The writer role, where the platform API may write definitions; never beyond the gateway's namespace.
pub(super) fn writer_binding(gateway: &DoormanGateway, installation: &Installation, own: &Own) -> Option<Object> {
    let definitions = gateway.spec.platform.as_ref().and_then(|platform| platform.definitions);
    (definitions == Some(Definitions::ReadWrite)).then(|| {
        let metadata = own.meta_named(format!("{}-writer", own.name));
        let role_ref = role(&installation.writer_cluster_role);
        object(Kind::RoleBinding, &RoleBinding { metadata, role_ref, subjects: Some(vec![subject(own)]) })
    })
}

/// The reader role, in one namespace where that is enough.
pub(super) fn binding(gateway: &DoormanGateway, installation: &Installation, own: &Own) -> Object {
    let (role_ref, subjects) = (role(&installation.reader_cluster_role), Some(vec![subject(own)]));
    match gateway.spec.apis.as_ref().and_then(|apis| apis.namespaces).unwrap_or_default() {
        Namespaces::Same => object(Kind::RoleBinding, &RoleBinding { metadata: own.meta(), role_ref, subjects }),
        Namespaces::All | Namespaces::Selector => {
            // An owner in a namespace can't own what belongs to the cluster: the annotation tells whose it is.
            let metadata = ObjectMeta {
                name: Some(format!("doorman-gateway:{}:{}", own.namespace, own.name)),
                labels: Some(own.labels()),
                annotations: Some(BTreeMap::from([(
                    GATEWAY_ANNOTATION.to_owned(),
                    format!("{}/{}", own.namespace, own.gateway),
                )])),
                ..ObjectMeta::default()
            };
            object(Kind::ClusterRoleBinding, &ClusterRoleBinding { metadata, role_ref, subjects })
        }
    }
}
