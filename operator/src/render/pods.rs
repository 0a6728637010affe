//! The Deployment: pods under the "restricted" Pod Security Standard that are replaced without losing a request.

use std::collections::BTreeMap;

use doorman_crds::DoormanGateway;
use doorman_crds::gateway::{ADMIN_PORT, PodTemplateOverrides, PullPolicy, StorageMode, grace_seconds};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapEnvSource, Container, ContainerPort, EmptyDirVolumeSource, EnvFromSource, EnvVar,
    EnvVarSource, HTTPGetAction, KeyToPath, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource,
    ResourceRequirements, SeccompProfile, SecretKeySelector, SecretProjection, SecretVolumeSource, SecurityContext,
    TopologySpreadConstraint, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::network::port_name;
use super::settings::{JWT_SECRET_KEY, KEYS, SNAPSHOTS, Settings, TLS, TOKEN_KEYS, traffic_port};
use super::{Installation, Own, hash};

/// Annotation of the pods that changes with their settings, so that a change replaces them.
pub(super) const CONFIG_HASH: &str = "doorman.dev/config-hash";
/// Name of the admin port.
const ADMIN: &str = "admin";
/// The user of the image, as distroless images have it.
const USER: i64 = 65532;
/// Files that only the user may read: 0440.
const FILE_MODE: i32 = 0o440;

pub(super) fn deployment(
    gateway: &DoormanGateway,
    installation: &Installation,
    own: &Own,
    settings: &Settings,
) -> Deployment {
    let overrides = gateway.spec.pod_template.clone().unwrap_or_default();
    let strategy = match gateway.spec.storage.mode {
        // Two processes would each have a memory of their own.
        StorageMode::Memory => DeploymentStrategy { type_: Some("Recreate".to_owned()), rolling_update: None },
        StorageMode::External => DeploymentStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::String("25%".to_owned())),
                max_unavailable: Some(IntOrString::Int(0)),
            }),
        },
    };
    let mut labels = overrides.labels.clone().unwrap_or_default();
    labels.extend(own.labels());
    let mut annotations = overrides.annotations.clone().unwrap_or_default();
    let content = serde_json::to_vec(&settings.plain).unwrap_or_default();
    annotations.insert(CONFIG_HASH.to_owned(), hash(&content));
    Deployment {
        metadata: own.meta(),
        spec: Some(DeploymentSpec {
            replicas: Some(gateway.spec.replicas.unwrap_or(1)),
            revision_history_limit: Some(3),
            selector: own.label_selector(),
            strategy: Some(strategy),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(gateway, installation, own, settings, overrides)),
            },
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

fn pod(
    gateway: &DoormanGateway,
    installation: &Installation,
    own: &Own,
    settings: &Settings,
    overrides: PodTemplateOverrides,
) -> PodSpec {
    let (volumes, mounts) = volumes(gateway, settings);
    let image = gateway.spec.image.as_ref();
    let pull_policy = match image.map(|image| image.pull_policy) {
        None => installation.pull_policy.clone(),
        Some(policy) => policy.map(|policy| {
            let word = match policy {
                PullPolicy::Always => "Always",
                PullPolicy::IfNotPresent => "IfNotPresent",
                PullPolicy::Never => "Never",
            };
            word.to_owned()
        }),
    };
    let container = Container {
        name: "gateway".to_owned(),
        image: Some(image.map_or_else(|| installation.image.clone(), |image| image.reference.clone())),
        image_pull_policy: pull_policy,
        env_from: Some(vec![EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource { name: own.name.clone(), optional: None }),
            ..EnvFromSource::default()
        }]),
        env: Some(environment(gateway, settings, overrides.env)).filter(|env| !env.is_empty()),
        ports: Some(vec![port(port_name(gateway), traffic_port(gateway)), port(ADMIN, i32::from(ADMIN_PORT))]),
        startup_probe: Some(Probe { failure_threshold: Some(120), ..liveness(gateway, 1, 2) }),
        liveness_probe: Some(Probe { failure_threshold: Some(3), ..liveness(gateway, 10, 5) }),
        readiness_probe: Some(readiness()),
        resources: Some(overrides.resources.unwrap_or_else(resources)),
        volume_mounts: Some(mounts),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    PodSpec {
        service_account_name: Some(own.name.clone()),
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(grace_seconds(&gateway.spec)),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container],
        volumes: Some(volumes),
        image_pull_secrets: image.and_then(|image| image.pull_secrets.clone()).filter(|secrets| !secrets.is_empty()),
        node_selector: overrides.node_selector.filter(|labels| !labels.is_empty()),
        tolerations: overrides.tolerations.filter(|tolerations| !tolerations.is_empty()),
        // A valid spec has the shape; see `doorman_crds::gateway::validate`.
        affinity: overrides.affinity.and_then(|affinity| serde_json::from_value::<Affinity>(affinity.into()).ok()),
        priority_class_name: overrides.priority_class_name,
        topology_spread_constraints: Some(vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(own.label_selector()),
            ..TopologySpreadConstraint::default()
        }]),
        ..PodSpec::default()
    }
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn liveness(gateway: &DoormanGateway, period: i32, timeout: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/platform/monitor/liveness".to_owned()),
            port: IntOrString::String(port_name(gateway).to_owned()),
            scheme: Some(port_name(gateway).to_uppercase()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(timeout),
        ..Probe::default()
    }
}

/// Whether the pod takes traffic, stores or not: without them, what needs none still flows.
fn readiness() -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/readyz".to_owned()),
            port: IntOrString::String(ADMIN.to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(2),
        timeout_seconds: Some(2),
        failure_threshold: Some(2),
        ..Probe::default()
    }
}

fn resources() -> ResourceRequirements {
    let quantities = |pairs: &[(&str, &str)]| {
        let quantity = |(name, amount): &(&str, &str)| ((*name).to_owned(), Quantity((*amount).to_owned()));
        Some(pairs.iter().map(quantity).collect::<BTreeMap<_, _>>())
    };
    ResourceRequirements {
        requests: quantities(&[("cpu", "100m"), ("memory", "64Mi")]),
        limits: quantities(&[("memory", "512Mi")]),
        ..ResourceRequirements::default()
    }
}

/// What can't stand in the ConfigMap. Variables of the spec never replace a setting that is decided elsewhere.
fn environment(gateway: &DoormanGateway, settings: &Settings, added: Option<Vec<EnvVar>>) -> Vec<EnvVar> {
    let mongo = gateway.spec.storage.mongo.as_ref().filter(|_| gateway.spec.storage.mode == StorageMode::External);
    let user = mongo.and_then(|mongo| mongo.credentials_secret_ref.as_ref()).map(|named| EnvVar {
        name: "MONGO_DB_USER".to_owned(),
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: named.name.clone(),
                key: "username".to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
        value: None,
    });
    let is_free = |variable: &EnvVar| !settings.plain.contains_key(&variable.name);
    added.into_iter().flatten().filter(is_free).chain(user).collect()
}

fn volumes(gateway: &DoormanGateway, settings: &Settings) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mount = |name: &str, path: &str, is_read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: is_read_only.then_some(true),
        ..VolumeMount::default()
    };
    let keys = settings.files.iter().map(|file| VolumeProjection {
        secret: Some(SecretProjection {
            name: file.secret.clone(),
            items: Some(vec![KeyToPath { key: file.key.clone(), path: file.setting.to_owned(), mode: None }]),
            optional: None,
        }),
        ..VolumeProjection::default()
    });
    let file = |key: &String| KeyToPath { key: key.clone(), path: JWT_SECRET_KEY.to_owned(), mode: None };
    let token_keys = &settings.token_keys;
    let mut volumes = vec![
        Volume {
            name: "jwt".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(token_keys.secret.clone()),
                items: token_keys.only.as_ref().map(|key| vec![file(key)]),
                default_mode: Some(FILE_MODE),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "keys".to_owned(),
            projected: Some(ProjectedVolumeSource { default_mode: Some(FILE_MODE), sources: Some(keys.collect()) }),
            ..Volume::default()
        },
        Volume {
            name: "snapshots".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource { size_limit: Some(Quantity("256Mi".to_owned())), medium: None }),
            ..Volume::default()
        },
    ];
    let mut mounts =
        vec![mount("jwt", TOKEN_KEYS, true), mount("keys", KEYS, true), mount("snapshots", SNAPSHOTS, false)];
    if let Some(tls) = gateway.spec.listeners.as_ref().and_then(|listeners| listeners.tls.as_ref()) {
        volumes.push(Volume {
            name: "tls".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(tls.secret_ref.name.clone()),
                default_mode: Some(FILE_MODE),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        });
        mounts.push(mount("tls", TLS, true));
    }
    (volumes, mounts)
}
