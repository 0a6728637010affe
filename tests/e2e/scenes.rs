//! The scenes. Each leaves the cluster so that the next can go on.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use doorman_crds::{DoormanApi, DoormanGateway, DoormanRole};
use doorman_tests::load::{self, Plan};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, WatchEvent, WatchParams,
};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::cluster::{Cluster, Deed, PATIENCE, apply, condition, ensure_eq, helm, is_true, kit, kit_program, kubectl};

/// Where the operator runs.
pub const SYSTEM: &str = "doorman-e2e-system";
/// Lease of the leading operator.
const LEASE: &str = "doorman-operator";
/// A gateway in memory and the examples.
pub const FIRST: &str = "doorman-e2e-first";
/// A gateway of several pods.
pub const FLEET: &str = "doorman-e2e-fleet";
/// Many APIs.
const MANY: &str = "doorman-e2e-many";

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
pub const NAME: &str = "edge";
/// The gateway that comes with the chart.
pub const OF_CHART: &str = "first";
/// What the names of all namespaces here begin with.
const NAMESPACES: &str = "doorman-e2e-";
/// Of everything that the operator has made.
const OWNED: &str = "app.kubernetes.io/managed-by=doorman-operator";
const CHANGES: usize = 20;
const APIS: usize = 500;
/// How long nothing may be written.
const IDLE: Duration = Duration::from_secs(30);

fn file(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(format!("{ROOT}/{path}")).with_context(|| path.to_owned())
}

/// The gateway of the examples, but for its drain: one pod alone has nobody to leave callers to, and scenes wait for it.
fn lone_gateway() -> anyhow::Result<String> {
    let (example, storage) = (file("examples/cluster/gateway.yaml")?, "storage: {mode: Memory}");
    ensure!(example.contains(storage), "the example has another storage");
    Ok(example.replace(storage, &format!("{storage}\n  settings: {{DOORMAN_DRAIN_SECONDS: '0'}}")))
}

/// Removes what an earlier run has left.
pub async fn clear() -> anyhow::Result<()> {
    kubectl(&["delete", "namespace", FIRST, FLEET, MANY, "--ignore-not-found", "--timeout=2m"]).await?;
    helm(&["uninstall", "doorman", "-n", SYSTEM, "--ignore-not-found", "--wait"]).await?;
    helm(&["uninstall", "doorman-crds", "-n", SYSTEM, "--ignore-not-found", "--wait"]).await?;
    kubectl(&["delete", "namespace", SYSTEM, "--ignore-not-found", "--timeout=2m"]).await.map(drop)
}

/// The kinds belong to the whole cluster, so one installation is all that fits. Another one, say of the demo, is removed
/// from the test cluster; elsewhere it is left alone and nothing is tested.
pub async fn make_room() -> anyhow::Result<()> {
    let releases: Vec<Value> = serde_json::from_str(&helm(&["list", "--all-namespaces", "-o", "json"]).await?)?;
    let kinds = kubectl(&["get", "crd", "-o", "name"]).await?;
    let kinds: Vec<_> = kinds.lines().filter(|name| name.ends_with(".doorman.dev")).collect();
    let releases: Vec<_> = releases
        .iter()
        .filter(|release| release["chart"].as_str().is_some_and(|chart| chart.starts_with("doorman-")))
        .filter_map(|release| release["name"].as_str().zip(release["namespace"].as_str()))
        .collect();
    if releases.is_empty() && kinds.is_empty() {
        return Ok(());
    }
    ensure!(kit().is_some(), "Doorman is in this cluster already, by {releases:?} {kinds:?}; test on another one");
    println!("removing what is in the test cluster already: {releases:?} {kinds:?}");
    for kind in kinds {
        kubectl(&["delete", kind, "--timeout=2m"]).await?;
    }
    for (name, namespace) in releases {
        helm(&["uninstall", name, "-n", namespace, "--wait"]).await?;
    }
    Ok(())
}

/// Pods that break the "restricted" Pod Security Standard are refused in it.
async fn namespace(name: &str) -> anyhow::Result<()> {
    kubectl(&["create", "namespace", name]).await?;
    kubectl(&["label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted", "doorman-e2e=yes"]).await?;
    Ok(())
}

async fn backing(namespace: &str, name: &str) -> anyhow::Result<()> {
    let (path, label) = (format!("{ROOT}/tests/cluster/backing.yaml"), format!("app.kubernetes.io/name={name}"));
    kubectl(&["apply", "-n", namespace, "-f", &path, "-l", &label]).await?;
    kubectl(&["wait", "-n", namespace, "--for=condition=Available", "deployment", "-l", &label, "--timeout=2m"])
        .await?;
    Ok(())
}

pub async fn install_and_call(cluster: &Cluster) -> anyhow::Result<()> {
    namespace(SYSTEM).await?;
    let charts = format!("{ROOT}/charts");
    helm(&[
        "upgrade",
        "--install",
        "doorman-crds",
        &format!("{charts}/doorman-crds"),
        "-n",
        SYSTEM,
        "--set",
        "keep=false",
    ])
    .await?;
    helm(&[
        "upgrade",
        "--install",
        "doorman",
        &format!("{charts}/doorman"),
        "-n",
        SYSTEM,
        "--set",
        "image.repository=localhost/doorman-operator,image.tag=test",
        "--set",
        "gatewayImage.repository=localhost/doorman-gateway,gatewayImage.tag=test",
        "--set",
        "replicas=2,podDisruptionBudget.enabled=true,networkPolicy.enabled=true",
        "--set",
        &format!("gateway.create=true,gateway.name={OF_CHART}"),
        "--set-string",
        "gateway.spec.settings.DOORMAN_DRAIN_SECONDS=0",
        "--wait",
        "--timeout=2m",
    ])
    .await?;
    cluster.wait_true::<DoormanGateway>(SYSTEM, OF_CHART, "Ready").await?;

    namespace(FIRST).await?;
    backing(FIRST, "sample-upstream").await?;
    apply(FIRST, &lone_gateway()?).await?;
    for example in ["orders", "ledger"] {
        apply(FIRST, &file(&format!("examples/cluster/{example}.yaml"))?).await?;
    }
    cluster.wait_true::<DoormanGateway>(FIRST, NAME, "Ready").await?;
    for name in ["orders-v1", "ledger-v1"] {
        let api = cluster.wait_true::<DoormanApi>(FIRST, name, "Ready").await?;
        ensure!(is_true(&api, "Accepted") && is_true(&api, "Programmed"), "Ready without the others: {api}");
    }
    cluster.wait_true::<DoormanRole>(FIRST, "bookkeeper", "Ready").await?;

    let url = cluster.url(FIRST, NAME).await?;
    cluster.wait_for_status(&format!("{url}/api/rest/orders/v1/items/42"), 200).await?;
    let private = format!("{url}/api/rest/ledger/v1/entries");
    let (status, text) = cluster.get(&private, None).await?;
    ensure_eq(status, 401, &text)?;
    let token = sign_in(cluster, FIRST, &url).await?;
    let (status, text) = cluster.get(&private, Some(&token)).await?;
    ensure_eq(status, 403, &text)?;
    let subscription = json!({ "username": "admin", "api_name": "ledger", "api_version": "v1" });
    let subscribe = cluster.http.post(format!("{url}/platform/subscription/subscribe")).bearer_auth(&token);
    subscribe.json(&subscription).send().await?.error_for_status()?;
    let (status, text) = cluster.get(&private, Some(&token)).await?;
    ensure_eq(status, 200, &text)
}

/// The token of a gateway's administrator.
async fn sign_in(cluster: &Cluster, namespace: &str, url: &str) -> anyhow::Result<String> {
    let password = cluster.secret(namespace, "edge-admin", "DOORMAN_ADMIN_PASSWORD").await?;
    let login = json!({ "email": "admin@doorman.dev", "password": password });
    let answer = cluster.http.post(format!("{url}/platform/authorization")).json(&login).send().await?;
    let answer: Value = answer.error_for_status()?.json().await?;
    Ok(answer["access_token"].as_str().context("no access_token")?.to_owned())
}

pub async fn accounts_may_do_no_more_than_they_need(cluster: &Cluster) -> anyhow::Result<()> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    let operator = format!("system:serviceaccount:{SYSTEM}:doorman-operator");
    let gateway = format!("system:serviceaccount:{FIRST}:{NAME}");
    for name in ["view", "edit", "admin"] {
        let (role, user) = (format!("--clusterrole={name}"), format!("--user={name}"));
        kubectl(&["create", "rolebinding", name, &role, &user, "-n", FIRST]).await?;
    }
    let table: &[(&str, Deed<'_>, &str, bool)] = &[
        (&operator, ("create", "", "secrets"), FIRST, true),
        (&operator, ("patch", "apps", "deployments"), FIRST, true),
        (&operator, ("patch", "doorman.dev", "doormanapis/status"), FIRST, true),
        (&operator, ("update", "coordination.k8s.io", "leases"), SYSTEM, true),
        (&operator, ("update", "coordination.k8s.io", "leases"), FIRST, false),
        (&operator, ("patch", "doorman.dev", "doormanapis"), FIRST, false),
        (&operator, ("update", "", "secrets"), FIRST, false),
        (&operator, ("patch", "", "secrets"), FIRST, false),
        (&operator, ("delete", "", "secrets"), FIRST, false),
        (&operator, ("create", "", "pods"), FIRST, false),
        (&operator, ("create", "", "pods/exec"), FIRST, false),
        (&operator, ("create", "", "serviceaccounts/token"), FIRST, false),
        (&operator, ("delete", "apps", "deployments"), FIRST, false),
        (&operator, ("create", RBAC, "clusterroles"), "", false),
        (&operator, ("bind", RBAC, "clusterroles"), "", false),
        (&operator, ("create", RBAC, "roles"), FIRST, true),
        (&operator, ("escalate", RBAC, "roles"), FIRST, false),
        (&operator, ("escalate", RBAC, "clusterroles"), "", false),
        (&operator, ("bind", RBAC, "roles"), FIRST, false),
        (&gateway, ("list", "doorman.dev", "doormanapis"), FIRST, true),
        (&gateway, ("list", "doorman.dev", "doormanapis"), SYSTEM, false),
        (&gateway, ("patch", "doorman.dev", "doormanapis"), FIRST, false),
        (&gateway, ("patch", "doorman.dev", "doormanroles"), FIRST, false),
        (&gateway, ("get", "", "secrets"), FIRST, false),
        ("view", ("list", "doorman.dev", "doormanroles"), FIRST, true),
        ("view", ("create", "doorman.dev", "doormanapis"), FIRST, false),
        ("edit", ("create", "doorman.dev", "doormanapis"), FIRST, true),
        ("edit", ("create", "doorman.dev", "doormanroles"), FIRST, false),
        ("edit", ("patch", "doorman.dev", "doormanapis/status"), FIRST, false),
        ("admin", ("update", "doorman.dev", "doormangateways/scale"), FIRST, true),
        ("admin", ("patch", "doorman.dev", "doormangateways/status"), FIRST, false),
    ];
    for &(user, what, namespace, wanted) in table {
        let may = cluster.may(user, what, namespace).await?;
        ensure_eq(may, wanted, &format!("whether {user} may {what:?} in {namespace:?}"))?;
    }
    Ok(())
}

/// Specs that can't work, and a part of what the API server says to them.
const REFUSED: &[(&str, &str, &str)] = &[
    ("DoormanGateway", "{replicas: 2, storage: {mode: Memory}}", "memory storage lives in one process"),
    ("DoormanGateway", "{storage: {mode: External}}", "External storage needs storage.redis and storage.mongo"),
    (
        "DoormanGateway",
        "{storage: {mode: Memory}, listeners: {behindProxy: true, tls: {secretRef: {name: a}}}}",
        "TLS ends either here",
    ),
    ("DoormanApi", "{name: a, version: v1, protocol: SOAP}", "a SOAP API needs at least one entry in spec.servers"),
    (
        "DoormanApi",
        "{name: a, version: v1, protocol: REST, endpoints: [{method: GET, uri: /a}, {method: GET, uri: /a}]}",
        "duplicate entries for key",
    ),
    (
        "DoormanApi",
        "{name: a, version: v1, protocol: REST, servers: ['http://a', 'http://b'], serverWeights: [1]}",
        "spec.serverWeights needs one weight for each of spec.servers",
    ),
    (
        "DoormanApi",
        "{name: a, version: v1, protocol: REST, serverWeights: [1]}",
        "spec.serverWeights needs one weight for each of spec.servers",
    ),
    (
        "DoormanApi",
        "{name: a, version: v1, protocol: REST, servers: ['http://a'], serverWeights: [0]}",
        "spec.serverWeights must not all be 0: no server would be called",
    ),
    (
        "DoormanApi",
        "{name: a, version: v1, protocol: REST, servers: ['http://a'], serverWeights: [101]}",
        "should be less than or equal to 100",
    ),
    (
        "DoormanApi",
        "{name: a, version: v1, protocol: REST, endpoints: [{method: GET, uri: /a, servers: ['http://a'], serverWeights: [1, 2]}]}",
        "serverWeights needs one weight for each of the endpoint's servers",
    ),
    ("DoormanApi", "{name: a, version: v1, protocol: SMTP}", "Unsupported value"),
    ("DoormanApi", "{name: a, version: v1}", "protocol"),
    ("DoormanRole", "{name: admin}", "the built-in role admin can't be redefined"),
];

pub async fn what_can_not_work_is_refused_at_once(_: &Cluster) -> anyhow::Result<()> {
    for (kind, spec, reason) in REFUSED {
        let manifest =
            format!("{{apiVersion: doorman.dev/v1alpha1, kind: {kind}, metadata: {{name: refused}}, spec: {spec}}}");
        match apply(FIRST, &manifest).await {
            Ok(_) => anyhow::bail!("{kind} {spec} is taken"),
            Err(error) => {
                ensure!(error.to_string().contains(reason), "{kind} {spec} is refused without {reason:?}: {error}");
            }
        }
    }
    Ok(())
}

pub async fn what_others_own_is_left_alone(cluster: &Cluster) -> anyhow::Result<()> {
    let theirs = "{apiVersion: v1, kind: ConfigMap, metadata: {name: taken}, data: {theirs: 'yes'}}";
    apply(FIRST, theirs).await?;
    let gateway = "{apiVersion: doorman.dev/v1alpha1, kind: DoormanGateway, metadata: {name: taken}, spec: {storage: {mode: Memory}}}";
    apply(FIRST, gateway).await?;
    let says_so = |gateway: &Value| {
        condition(gateway, "Progressing").is_some_and(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            condition["reason"] == "ApplyFailed" && message.contains("ConfigMap taken: it exists")
        })
    };
    cluster.wait::<DoormanGateway>(FIRST, "taken", "a word about the ConfigMap", says_so).await?;
    let found = cluster.api::<ConfigMap>(FIRST).get("taken").await?;
    ensure!(found.data["data"] == json!({ "theirs": "yes" }), "the ConfigMap was changed: {}", found.data);
    let deployment = cluster.api::<Deployment>(FIRST).get_opt("taken").await?;
    ensure!(deployment.is_none(), "pods are started with the settings of others");
    // Out of the way, it is tried again and works.
    kubectl(&["delete", "configmap", "taken", "-n", FIRST]).await?;
    cluster.wait_true::<DoormanGateway>(FIRST, "taken", "Ready").await?;
    kubectl(&["delete", "doormangateway", "taken", "-n", FIRST]).await.map(drop)
}

/// The platform API of a gateway, used by its administrator.
struct Rest<'a> {
    cluster: &'a Cluster,
    url: String,
    token: String,
}

impl<'a> Rest<'a> {
    async fn new(cluster: &'a Cluster, namespace: &str) -> anyhow::Result<Self> {
        let url = cluster.url(namespace, NAME).await?;
        cluster.wait_for_status(&format!("{url}/platform/monitor/readiness"), 200).await?;
        let token = sign_in(cluster, namespace, &url).await?;
        Ok(Self { cluster, url, token })
    }

    /// Sends this and expects that status, and this in the body.
    async fn expect(&self, method: Method, path: &str, body: &Value, status: u16, part: &str) -> anyhow::Result<()> {
        let request = self.cluster.http.request(method.clone(), format!("{}/platform{path}", self.url));
        let answer = request.bearer_auth(&self.token).json(body).send().await?;
        let (found, text) = (answer.status().as_u16(), answer.text().await?);
        ensure!(found == status && text.contains(part), "{method} {path}: {found} {text} instead of {status} {part:?}");
        Ok(())
    }
}

impl Rest<'_> {
    /// Waits until the gateway has seen whose an object is.
    async fn until_managed_by(&self, path: &str, whom: &str) -> anyhow::Result<()> {
        let part = format!("\"managed_by\":\"{whom}\"");
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.expect(Method::GET, path, &Value::Null, 200, &part).await {
            ensure!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

pub async fn roles_are_written_through_rest(cluster: &Cluster) -> anyhow::Result<()> {
    let account = format!("system:serviceaccount:{FIRST}:{NAME}");
    let may_write = async || cluster.may(&account, ("patch", "doorman.dev", "doormanroles"), FIRST).await;
    let new = json!({ "role_name": "auditor", "role_description": "Looks", "view_logs": true });
    let rest = Rest::new(cluster, FIRST).await?;
    rest.expect(Method::POST, "/role", &new, 409, "spec.platform.definitions is ReadOnly").await?;
    ensure!(!may_write().await?, "a gateway may write that should not");

    patch::<DoormanGateway>(cluster, FIRST, NAME, &json!({ "spec": { "platform": { "definitions": "ReadWrite" } } }))
        .await?;
    cluster.wait_true::<DoormanGateway>(FIRST, NAME, "Ready").await?;
    ensure!(may_write().await?, "the gateway may not write");
    let rest = Rest::new(cluster, FIRST).await?;
    rest.expect(Method::POST, "/role", &new, 201, "Role created successfully").await?;
    // Served when it was answered.
    rest.expect(Method::GET, "/role/auditor", &Value::Null, 200, "\"managed_by\":\"doorman-platform\"").await?;
    let role = cluster.wait_true::<DoormanRole>(FIRST, "auditor", "Ready").await?;
    ensure!(role["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "doorman-platform", "{role}");
    ensure_eq(&role["spec"]["gatewayRefs"], &json!([{ "name": NAME }]), "gatewayRefs")?;
    rest.expect(Method::POST, "/role", &new, 400, "ROLE001").await?;

    let change = json!({ "manage_users": true, "view_logs": false });
    rest.expect(Method::PUT, "/role/auditor", &change, 200, "\"manage_users\":true").await?;
    let permissions = async || {
        anyhow::Ok(cluster.api::<DoormanRole>(FIRST).get("auditor").await?.data["spec"]["permissions"].clone())
    };
    ensure_eq(permissions().await?, json!(["ManageUsers"]), "permissions")?;

    // What others have applied is theirs, and so is what they have taken over.
    rest.expect(Method::PUT, "/role/bookkeeper", &change, 409, "is defined by kubectl").await?;
    rest.expect(Method::DELETE, "/role/bookkeeper", &Value::Null, 409, "is defined by kubectl").await?;
    let label = "app.kubernetes.io/managed-by";
    kubectl(&["label", "doormanrole", "auditor", "-n", FIRST, &format!("{label}-")]).await?;
    rest.expect(Method::PUT, "/role/auditor", &change, 409, "is defined by").await?;
    rest.until_managed_by("/role/auditor", "somebody in the cluster").await?;
    kubectl(&["label", "doormanrole", "auditor", "-n", FIRST, &format!("{label}=doorman-platform")]).await?;
    rest.until_managed_by("/role/auditor", "doorman-platform").await?;
    let back = json!({ "view_logs": true });
    rest.expect(Method::PUT, "/role/auditor", &back, 200, "\"view_logs\":true").await?;
    let own = json!({ "spec": { "permissions": ["ExportLogs"] } }).to_string();
    kubectl(&["patch", "doormanrole", "auditor", "-n", FIRST, "--type=merge", "-p", &own]).await?;
    rest.expect(Method::PUT, "/role/auditor", &back, 409, "is defined by kubectl").await?;
    ensure_eq(permissions().await?, json!(["ExportLogs"]), "permissions")?;
    kubectl(&["delete", "doormanrole", "auditor", "-n", FIRST]).await?;

    let odd = json!({ "role_name": "Night Shift" });
    rest.expect(Method::POST, "/role", &odd, 201, "Role created successfully").await?;
    rest.expect(Method::DELETE, "/role/Night%20Shift", &Value::Null, 200, "Role deleted successfully").await?;
    let own = ListParams::default().labels(&format!("{label}=doorman-platform"));
    let left = cluster.api::<DoormanRole>(FIRST).list(&own).await?;
    ensure!(left.items.is_empty(), "a deleted role is still an object");

    patch::<DoormanGateway>(cluster, FIRST, NAME, &json!({ "spec": { "platform": null } })).await?;
    cluster.wait_true::<DoormanGateway>(FIRST, NAME, "Ready").await?;
    ensure!(!may_write().await?, "the right to write has outlived the field");
    Rest::new(cluster, FIRST).await?.expect(Method::POST, "/role", &new, 409, "ReadOnly").await
}

/// Waits until another than this one leads, and a change after that is programmed.
async fn led_by_another(cluster: &Cluster, leader: &str) -> anyhow::Result<String> {
    let start = Instant::now();
    let holder = |lease: &Value| lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
    let is_another = |lease: &Value| {
        let holder = holder(lease);
        !holder.is_empty() && holder != leader
    };
    let lease = cluster.wait::<Lease>(SYSTEM, LEASE, "another holder", is_another).await?;
    let (successor, taken, changed) = (holder(&lease), start.elapsed(), Instant::now());
    let change = json!({ "spec": { "description": format!("After {leader}") } });
    let generation = patch::<DoormanApi>(cluster, FIRST, "orders-v1", &change).await?;
    let is_programmed = |api: &Value| is_true(api, "Programmed") && api["metadata"]["generation"] == generation;
    cluster.wait::<DoormanApi>(FIRST, "orders-v1", "Programmed=True", is_programmed).await?;
    println!("  {successor} leads {taken:.1?} after {leader}, a change is programmed {:.1?} later", changed.elapsed());
    Ok(successor)
}

pub async fn another_operator_takes_over(cluster: &Cluster) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let leader = leases.get(LEASE).await?.spec.and_then(|spec| spec.holder_identity).context("nobody leads")?;
    kubectl(&["delete", "pod", &leader, "-n", SYSTEM, "--wait=false"]).await?;
    led_by_another(cluster, &leader).await?;
    kubectl(&["rollout", "status", "-n", SYSTEM, "deployment/doorman-operator", "--timeout=2m"]).await?;

    // One that dies leading gives nothing back: its lease has to run out.
    let dead = json!({ "spec": { "holderIdentity": "dead", "leaseDurationSeconds": 5 } });
    leases.patch(LEASE, &PatchParams::default(), &Patch::Merge(&dead)).await?;
    led_by_another(cluster, "dead").await?;
    kubectl(&["rollout", "status", "-n", SYSTEM, "deployment/doorman-operator", "--timeout=2m"]).await.map(drop)
}

pub async fn fleet_scales_and_rolls_under_load(cluster: &Cluster) -> anyhow::Result<()> {
    namespace(FLEET).await?;
    for name in ["sample-upstream", "redis", "mongo"] {
        backing(FLEET, name).await?;
    }
    apply(FLEET, &file("examples/external/gateway.yaml")?).await?;
    apply(FLEET, &file("examples/cluster/orders.yaml")?).await?;
    cluster.wait_true::<DoormanGateway>(FLEET, NAME, "Ready").await?;
    cluster.wait_true::<DoormanApi>(FLEET, "orders-v1", "Ready").await?;

    kubectl(&["scale", "-n", FLEET, "doormangateway/edge", "--replicas=3"]).await?;
    three_ready(cluster).await?;
    let before = pods(cluster, FLEET).await?;
    ensure_eq(before.len(), 3, "ready pods")?;
    for pod in cluster.pods(FLEET).await? {
        ensure_eq(cluster.ask_pod(&pod, "/api/rest/orders/v1/items").await?, 200, "a new pod's answer")?;
    }

    let url = format!("{}/api/rest/orders/v1/items/7", cluster.url(FLEET, NAME).await?);
    cluster.wait_for_status(&url, 200).await?;
    let load = load::start(Plan::new(&[url])?.at(200.0, 16).expecting(200))?;
    let settings = json!({ "spec": { "settings": { "HTTP_READ_TIMEOUT": "29" } } });
    patch::<DoormanGateway>(cluster, FLEET, NAME, &settings).await?;
    three_ready(cluster).await?;
    let all_new = |pods: &BTreeSet<String>| pods.len() == 3 && pods.is_disjoint(&before);
    let found = pods(cluster, FLEET).await?;
    ensure!(all_new(&found), "Ready=True, but the pods are {found:?} after {before:?}");
    for name in &before {
        kubectl(&["wait", "-n", FLEET, "--for=delete", &format!("pod/{name}"), "--timeout=2m"]).await?;
    }
    let report = load.finish().await;
    println!(
        "  rolled 3 pods under {:.0} requests/s: {} answered, {} failed",
        report.achieved_rate, report.succeeded, report.failed
    );
    ensure!(report.failed == 0 && report.succeeded > 1000, "{:?} {:?}", report.failures, report.samples);
    Ok(())
}

async fn three_ready(cluster: &Cluster) -> anyhow::Result<()> {
    let is_there = |gateway: &Value| is_true(gateway, "Ready") && gateway["status"]["readyReplicas"] == 3;
    cluster.wait::<DoormanGateway>(FLEET, NAME, "3 ready pods and Ready=True", is_there).await.map(drop)
}

pub async fn pods(cluster: &Cluster, namespace: &str) -> anyhow::Result<BTreeSet<String>> {
    Ok(cluster.pods(namespace).await?.into_iter().filter_map(|pod| pod.metadata.name).collect())
}

pub async fn patch<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    patch: &Value,
) -> anyhow::Result<i64> {
    let object = cluster.api::<K>(namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    object.metadata.generation.context("no generation")
}

pub async fn programmed_means_served_by_every_pod(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = cluster.pods(FLEET).await?;
    ensure_eq(pods.len(), 3, "ready pods")?;
    let (mut asked, mut slowest) = (0, Duration::ZERO);
    for change in 1..=CHANGES {
        let endpoints = json!([{ "method": "GET", "uri": format!("/change/{change}") }]);
        let start = Instant::now();
        let generation =
            patch::<DoormanApi>(cluster, FLEET, "orders-v1", &json!({ "spec": { "endpoints": endpoints } })).await?;
        let is_programmed = |api: &Value| is_true(api, "Programmed") && api["metadata"]["generation"] == generation;
        cluster.wait::<DoormanApi>(FLEET, "orders-v1", "Programmed=True", is_programmed).await?;
        slowest = slowest.max(start.elapsed());
        for (asked_for, wanted) in [(change, 200), (change - 1, 404)] {
            let path = format!("/api/rest/orders/v1/change/{asked_for}");
            let answers = try_join_all(pods.iter().map(|pod| cluster.ask_pod(pod, &path))).await?;
            ensure!(answers.iter().all(|&answer| answer == wanted), "after change {change}, {path}: {answers:?}");
            asked += answers.len();
        }
    }
    println!(
        "  {CHANGES} changes, each seen on every pod ({asked} looks) at Programmed=True; the slowest took {slowest:.1?}"
    );
    Ok(())
}

/// The status that every pod gives, once the object is programmed in this state.
async fn every_pod_gives(cluster: &Cluster, name: &str, path: &str, status: u16) -> anyhow::Result<()> {
    let generation = cluster.api::<DoormanApi>(FLEET).get(name).await?.metadata.generation.context("no generation")?;
    let is_programmed = |api: &Value| is_true(api, "Programmed") && api["metadata"]["generation"] == generation;
    cluster.wait::<DoormanApi>(FLEET, name, "Programmed=True", is_programmed).await?;
    let pods = cluster.pods(FLEET).await?;
    let answers = try_join_all(pods.iter().map(|pod| cluster.ask_pod(pod, path))).await?;
    ensure!(answers.len() == 3 && answers.iter().all(|answer| *answer == status), "{path}: {answers:?} not {status}");
    Ok(())
}

pub async fn apis_are_written_through_rest(cluster: &Cluster) -> anyhow::Result<()> {
    patch::<DoormanGateway>(cluster, FLEET, NAME, &json!({ "spec": { "platform": { "definitions": "ReadWrite" } } }))
        .await?;
    three_ready(cluster).await?;
    let rest = Rest::new(cluster, FLEET).await?;
    let new = json!({ "api_name": "stock", "api_version": "v1", "api_type": "SOAP", "api_public": true,
        "api_servers": ["http://sample-upstream:7000"] });
    rest.expect(Method::POST, "/api", &new, 201, "\"managed_by\":\"doorman-platform\"").await?;
    rest.expect(Method::POST, "/api", &new, 200, "API already exists").await?;
    let endpoint = |uri: &str| {
        json!({ "api_name": "stock", "api_version": "v1", "endpoint_method": "GET", "endpoint_uri": uri,
            "endpoint_description": "x" })
    };
    rest.expect(Method::POST, "/endpoint", &endpoint("/items"), 201, "Endpoint created").await?;
    every_pod_gives(cluster, "stock-v1", "/api/rest/stock/v1/items", 200).await?;
    let label = "app.kubernetes.io/managed-by=doorman-platform";
    let listed = kubectl(&["get", "doormanapis", "-n", FLEET, "-l", label, "-o", "name"]).await?;
    ensure_eq(listed.trim(), "doormanapi.doorman.dev/stock-v1", "what the platform owns")?;

    // On whichever pod each of them arrives.
    let start = Instant::now();
    let many: Vec<Value> = (0..30).map(|number| endpoint(&format!("/many/{number}"))).collect();
    try_join_all(many.iter().map(|one| rest.expect(Method::POST, "/endpoint", one, 201, "created"))).await?;
    let object = cluster.api::<DoormanApi>(FLEET).get("stock-v1").await?;
    ensure_eq(object.data["spec"]["endpoints"].as_array().map(Vec::len), Some(31), "endpoints")?;
    println!("  {} endpoints added at once on 3 pods in {:.1?}", many.len(), start.elapsed());
    rest.expect(Method::PUT, "/api/stock/v1", &json!({ "active": false }), 200, "updated").await?;
    every_pod_gives(cluster, "stock-v1", "/api/rest/stock/v1/many/29", 403).await?;
    let servers = json!({ "api_servers": vec!["http://sample-upstream:7000"; 65] });
    rest.expect(Method::PUT, "/api/stock/v1", &servers, 422, "spec.servers").await?;
    rest.expect(Method::DELETE, "/api/stock/v1", &Value::Null, 200, "deleted").await?;
    ensure!(cluster.api::<DoormanApi>(FLEET).get_opt("stock-v1").await?.is_none(), "a deleted API is still an object");

    // What kubectl has applied is its own until it is adopted, and again once it was released.
    let change = json!({ "api_description": "Changed by REST" });
    rest.expect(Method::PUT, "/api/orders/v1", &change, 409, "is defined by").await?;
    rest.expect(Method::POST, "/api/orders/v1/adopt", &json!({}), 200, "adopted").await?;
    rest.expect(Method::PUT, "/api/orders/v1", &change, 200, "updated").await?;
    rest.expect(Method::GET, "/api/orders/v1", &Value::Null, 200, "Changed by REST").await?;
    rest.expect(Method::POST, "/api/orders/v1/release", &json!({}), 200, "released").await?;
    rest.expect(Method::PUT, "/api/orders/v1", &change, 409, "whoever it was released to").await?;
    // Without force: there is nobody to conflict with.
    apply(FLEET, &file("examples/cluster/orders.yaml")?).await?;
    every_pod_gives(cluster, "orders-v1", "/api/rest/orders/v1/items/7", 200).await?;
    rest.expect(Method::PUT, "/api/orders/v1", &change, 409, "is defined by kubectl").await?;
    rest.expect(Method::GET, "/api/orders/v1", &Value::Null, 200, "Orders of the sample shop").await
}

pub async fn one_invalid_api_of_500(cluster: &Cluster) -> anyhow::Result<()> {
    namespace(MANY).await?;
    backing(MANY, "sample-upstream").await?;
    apply(MANY, &lone_gateway()?).await?;
    cluster.wait_true::<DoormanGateway>(MANY, NAME, "Ready").await?;
    let mut manifests = String::new();
    for number in 0..APIS {
        let (server, kind) =
            if number == 250 { ("http://169.254.169.254", "bad") } else { ("http://sample-upstream:7000", "good") };
        write!(
            manifests,
            "---\napiVersion: doorman.dev/v1alpha1\nkind: DoormanApi\nmetadata: {{name: api-{number}, labels: {{kind: {kind}}}}}\n\
             spec:\n  name: api{number}\n  version: v1\n  protocol: REST\n  public: true\n  servers: [\"{server}\"]\n  \
             endpoints: [{{method: GET, uri: /a}}]\n"
        )?;
    }
    let start = Instant::now();
    apply(MANY, &manifests).await?;
    let applied = start.elapsed();
    cluster.wait_all_true::<DoormanApi>(MANY, "kind=good", "Programmed", APIS - 1).await?;
    println!("  {APIS} APIs applied in {applied:.1?}; served {:.1?} later", start.elapsed().saturating_sub(applied));
    let bad =
        cluster.wait::<DoormanApi>(MANY, "api-250", "a verdict", |api| condition(api, "Accepted").is_some()).await?;
    let accepted = condition(&bad, "Accepted").cloned().unwrap_or_default();
    let message = accepted["message"].as_str().unwrap_or_default();
    ensure!(accepted["status"] == "False" && message.contains("spec.servers[0]"), "{accepted}");
    let gateway =
        cluster.wait::<DoormanGateway>(MANY, NAME, "500 APIs", |gateway| gateway["status"]["apis"] == APIS).await?;
    ensure!(is_true(&gateway, "Ready"), "one bad API has made the gateway unready: {}", gateway["status"]);

    all_but_one_serve(cluster).await.context("on the warm pod")?;
    let before = pods(cluster, MANY).await?;
    kubectl(&["delete", "pod", "-n", MANY, "-l", "app.kubernetes.io/instance=edge", "--wait=true"]).await?;
    new_pods(cluster, MANY, &before).await?;
    all_but_one_serve(cluster).await.context("on the cold pod")
}

pub async fn new_pods(cluster: &Cluster, namespace: &str, before: &BTreeSet<String>) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let watch = kube::runtime::watcher(
        api,
        kube::runtime::watcher::Config::default().labels("app.kubernetes.io/name=doorman-gateway"),
    );
    let mut watch = Box::pin(watch);
    let all = async {
        while watch.try_next().await?.is_some() {
            let now = pods(cluster, namespace).await?;
            if now.len() == before.len() && now.is_disjoint(before) {
                return anyhow::Ok(());
            }
        }
        anyhow::bail!("the watch has ended")
    };
    timeout(PATIENCE, all).await.context("no new pods became ready")?
}

async fn all_but_one_serve(cluster: &Cluster) -> anyhow::Result<()> {
    let url = cluster.url(MANY, NAME).await?;
    cluster.wait_for_status(&format!("{url}/api/rest/api0/v1/a"), 200).await?;
    let mut served = 0;
    for number in 0..APIS {
        let (status, text) = cluster.get(&format!("{url}/api/rest/api{number}/v1/a"), None).await?;
        ensure!((status == 200) == (number != 250), "api{number}: {status} {text}");
        served += usize::from(status == 200);
    }
    println!("  {served} of {APIS} APIs serve");
    ensure_eq(served, APIS - 1, "served APIs")
}

pub async fn gateways_live_without_operator_and_api_server(cluster: &Cluster) -> anyhow::Result<()> {
    kubectl(&["scale", "-n", SYSTEM, "deployment/doorman-operator", "--replicas=0"]).await?;
    kubectl(&[
        "wait",
        "-n",
        SYSTEM,
        "--for=delete",
        "pod",
        "-l",
        "app.kubernetes.io/name=doorman-operator",
        "--timeout=1m",
    ])
    .await?;
    let before = pods(cluster, FIRST).await?;
    kubectl(&["delete", "pod", "-n", FIRST, "-l", "app.kubernetes.io/instance=edge", "--wait=true"]).await?;
    new_pods(cluster, FIRST, &before).await?;
    let url = format!("{}/api/rest/orders/v1/items/42", cluster.url(FIRST, NAME).await?);
    cluster.wait_for_status(&url, 200).await?;
    kubectl(&["scale", "-n", SYSTEM, "deployment/doorman-operator", "--replicas=2"]).await?;
    kubectl(&["rollout", "status", "-n", SYSTEM, "deployment/doorman-operator", "--timeout=2m"]).await?;

    if kit().is_some() {
        kit_program("stop", "kube-apiserver").await?;
        ensure!(
            kubectl(&["get", "--raw", "/readyz", "--request-timeout=2s"]).await.is_err(),
            "the API server still answers"
        );
        let report = load::start(Plan::new(&[url])?.at(200.0, 8).lasting(Duration::from_secs(10)).expecting(200))?
            .report()
            .await;
        kit_program("start", "kube-apiserver").await?;
        println!("  without the API server: {} answered, {} failed", report.succeeded, report.failed);
        ensure!(report.failed == 0 && report.succeeded > 1000, "{:?} {:?}", report.failures, report.samples);
    } else {
        println!("  the API server of a cluster that is not ours is not stopped");
    }
    // The operator has outlived it: a change is taken up.
    let start = Instant::now();
    let generation =
        patch::<DoormanApi>(cluster, FIRST, "orders-v1", &json!({ "spec": { "description": "Still here" } })).await?;
    let is_programmed = |api: &Value| is_true(api, "Programmed") && api["metadata"]["generation"] == generation;
    cluster.wait::<DoormanApi>(FIRST, "orders-v1", "Programmed=True", is_programmed).await?;
    println!("  a change made then is served everywhere after {:.1?}", start.elapsed());
    Ok(())
}

/// Kinds whose objects the operator writes.
fn written() -> Vec<ApiResource> {
    vec![
        ApiResource::erase::<DoormanGateway>(&()),
        ApiResource::erase::<DoormanApi>(&()),
        ApiResource::erase::<DoormanRole>(&()),
        ApiResource::erase::<Deployment>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Secret>(&()),
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<Role>(&()),
        ApiResource::erase::<RoleBinding>(&()),
        ApiResource::erase::<ClusterRoleBinding>(&()),
    ]
}

fn is_owned(object: &DynamicObject) -> bool {
    object.labels().iter().any(|(key, value)| format!("{key}={value}") == OWNED)
}

async fn first_change(client: Client, resource: ApiResource) -> anyhow::Result<String> {
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let listed = api.list(&ListParams::default()).await?;
    let version = listed.metadata.resource_version.context("no resourceVersion")?;
    let mut changes = api.watch(&WatchParams::default(), &version).await?.boxed();
    loop {
        let (what, object) = match changes.try_next().await?.context("the watch has ended")? {
            WatchEvent::Added(object) => ("added", object),
            WatchEvent::Modified(object) => ("changed", object),
            WatchEvent::Deleted(object) => ("deleted", object),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(error) => anyhow::bail!(error),
        };
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        // Others may use the cluster at the same time.
        let is_ours = if namespace.is_empty() { is_owned(&object) } else { namespace.starts_with(NAMESPACES) };
        if is_ours {
            return Ok(format!("{} {namespace}/{name} was {what}", resource.kind));
        }
    }
}

pub async fn idle_writes_nothing(cluster: &Cluster) -> anyhow::Result<()> {
    for namespace in [FIRST, FLEET, MANY] {
        if cluster.api::<DoormanGateway>(namespace).get_opt(NAME).await?.is_some() {
            cluster.wait_true::<DoormanGateway>(namespace, NAME, "Ready").await?;
        }
    }
    let changes = written().into_iter().map(|resource| first_change(cluster.client.clone(), resource));
    match timeout(IDLE, futures::future::select_all(changes.map(Box::pin))).await {
        Err(_) => Ok(()),
        Ok((change, _, _)) => anyhow::bail!("while nothing happened, {}", change?),
    }
}

pub async fn nothing_is_left(cluster: &Cluster) -> anyhow::Result<()> {
    // One gateway with an object that belongs to the whole cluster.
    let everywhere = json!({ "spec": { "apis": { "namespaces": "Selector", "namespaceSelector": { "matchLabels": { "doorman-e2e": "yes" } } } } });
    patch::<DoormanGateway>(cluster, FIRST, NAME, &everywhere).await?;
    cluster.wait_true::<DoormanGateway>(FIRST, NAME, "Ready").await?;
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    ensure!(
        bindings.get_opt("doorman-gateway:doorman-e2e-first:edge").await?.is_some(),
        "no ClusterRoleBinding was made"
    );

    for namespace in [FIRST, FLEET, MANY] {
        for api in [
            cluster.api::<DoormanGateway>(namespace),
            cluster.api::<DoormanApi>(namespace),
            cluster.api::<DoormanRole>(namespace),
        ] {
            // kubectl deletes one after the other, at five a second.
            api.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
            gone(&api, &ListParams::default()).await?;
        }
    }
    // What has no owner in its namespace goes by the operator's hand, all else by Kubernetes' own.
    let owned = ListParams::default().labels(OWNED);
    let resource = ApiResource::erase::<ClusterRoleBinding>(&());
    gone(&Api::all_with(cluster.client.clone(), &resource), &owned).await.context("before uninstalling")?;
    helm(&["uninstall", "doorman", "-n", SYSTEM, "--wait"]).await?;
    for resource in written().into_iter().chain([ApiResource::erase::<Pod>(&())]) {
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        gone(&api, &owned).await.with_context(|| resource.kind.clone())?;
    }
    helm(&["uninstall", "doorman-crds", "-n", SYSTEM, "--wait"]).await?;
    let release = ListParams::default().labels("app.kubernetes.io/instance=doorman");
    for resource in [ApiResource::erase::<ClusterRole>(&()), ApiResource::erase::<ClusterRoleBinding>(&())] {
        gone(&Api::all_with(cluster.client.clone(), &resource), &release)
            .await
            .with_context(|| resource.kind.clone())?;
    }
    ensure!(!kubectl(&["api-resources", "-o", "name"]).await?.contains("doorman.dev"), "the kinds are still there");
    let namespaces = ["delete", "namespace", FIRST, FLEET, MANY, SYSTEM, "--ignore-not-found", "--timeout=2m"];
    kubectl(&namespaces).await.map(drop)
}

async fn gone(api: &Api<DynamicObject>, labels: &ListParams) -> anyhow::Result<()> {
    let until = async {
        loop {
            let listed = api.list(labels).await?;
            if listed.items.is_empty() {
                return anyhow::Ok(());
            }
            let version = listed.metadata.resource_version.context("no resourceVersion")?;
            let mut parameters = WatchParams::default();
            parameters.label_selector.clone_from(&labels.label_selector);
            api.watch(&parameters, &version).await?.boxed().try_next().await?;
        }
    };
    if let Ok(result) = timeout(PATIENCE, until).await {
        return result;
    }
    let names: Vec<_> = api.list(labels).await?.items.into_iter().filter_map(|object| object.metadata.name).collect();
    anyhow::bail!("still there: {names:?}")
}
