//! Who the pods are and what they may read.

use std::collections::BTreeSet;

use doorman_crds::DoormanGateway;
use doorman_crds::gateway::{Definitions, Namespaces};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::{Grant, Installation, Kind, Object, Own, object};

pub(super) fn service_account(own: &Own) -> ServiceAccount {
    // The pods ask for the token themselves; nothing else that runs under this account gets one.
    ServiceAccount { metadata: own.meta(), automount_service_account_token: Some(false), ..ServiceAccount::default() }
}

fn role(kind: &str, name: &str) -> RoleRef {
    RoleRef { api_group: "rbac.authorization.k8s.io".to_owned(), kind: kind.to_owned(), name: name.to_owned() }
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
        let role_ref = role("ClusterRole", &installation.writer_cluster_role);
        object(Kind::RoleBinding, &RoleBinding { metadata, role_ref, subjects: Some(vec![subject(own)]) })
    })
}

/// The reader role, in one namespace where that is enough.
pub(super) fn binding(gateway: &DoormanGateway, installation: &Installation, own: &Own) -> Object {
    let (role_ref, subjects) = (role("ClusterRole", &installation.reader_cluster_role), Some(vec![subject(own)]));
    match gateway.spec.apis.as_ref().and_then(|apis| apis.namespaces).unwrap_or_default() {
        Namespaces::Same => object(Kind::RoleBinding, &RoleBinding { metadata: own.meta(), role_ref, subjects }),
        Namespaces::All | Namespaces::Selector => {
            let metadata = own.meta_elsewhere(None);
            object(Kind::ClusterRoleBinding, &ClusterRoleBinding { metadata, role_ref, subjects })
        }
    }
}

/// The right to read these Secrets of one namespace, by name, and no others.
pub(super) fn grant(own: &Own, namespace: &str, secrets: &BTreeSet<String>) -> Grant {
    let metadata = if namespace == own.namespace {
        own.meta_named(format!("{}-upstream-tls", own.name))
    } else {
        own.meta_elsewhere(Some(namespace))
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let rule = PolicyRule {
        api_groups: Some(words(&[""])),
        resources: Some(words(&["secrets"])),
        resource_names: Some(secrets.iter().cloned().collect()),
        // Of one name each, which is how a gateway follows it; it gets none.
        verbs: words(&["list", "watch"]),
        ..PolicyRule::default()
    };
    let role_ref = role("Role", metadata.name.as_deref().unwrap_or_default());
    let role = Role { metadata: metadata.clone(), rules: Some(vec![rule]) };
    let binding = RoleBinding { metadata, role_ref, subjects: Some(vec![subject(own)]) };
    let objects = vec![object(Kind::Role, &role), object(Kind::RoleBinding, &binding)];
    Grant { namespace: namespace.to_owned(), objects }
}
