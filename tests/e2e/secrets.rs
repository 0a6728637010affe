//! TLS to upstreams with Secrets of a namespace: who may read which, what statuses say, and what happens as they change.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use doorman_crds::{DoormanApi, DoormanGateway};
use doorman_tests::certificates::{Authority, Certificate};
use doorman_tests::load::{self, Plan};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde_json::{Value, json};

use super::cluster::{Cluster, PATIENCE, apply, condition, ensure_eq, is_true, kubectl};
use super::scenes::{FIRST, NAME, OF_CHART, SYSTEM, new_pods, patch, pods};

const API: &str = "secure-v1";
const CONSENT: &str = "doorman.dev/upstream-tls";
const FOR_GATEWAYS: &str = "doorman.dev/upstream-tls-gateways";

/// Not as `stringData`: the API server keeps no count of whose that is.
fn secret(name: &str, data: &Value) -> String {
    let text = |value: &Value| ByteString(value.as_str().unwrap_or_default().as_bytes().to_vec());
    let data: BTreeMap<_, _> = data.as_object().into_iter().flatten().map(|(key, value)| (key, text(value))).collect();
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "data": data }).to_string()
}

fn pair(certificate: &Certificate) -> Value {
    json!({ "tls.crt": certificate.chain, "tls.key": certificate.key })
}

/// A sample upstream that lets only clients of this authority in.
async fn upstream(own: &Certificate, clients: &Authority) -> anyhow::Result<()> {
    let mut data = pair(own);
    data["ca.crt"] = json!(clients.pem());
    apply(FIRST, &secret("secure-upstream", &data)).await?;
    let labels = json!({ "app": "secure-upstream" });
    let container = json!({
        "name": "upstream", "image": "localhost/sample-upstream:test", "imagePullPolicy": "IfNotPresent",
        "args": ["--address", "0.0.0.0", "--port", "7443", "--tls", "/tls"],
        "readinessProbe": { "tcpSocket": { "port": 7443 }, "periodSeconds": 1 },
        "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
        "volumeMounts": [{ "name": "tls", "mountPath": "/tls" }],
    });
    let pod = json!({
        "automountServiceAccountToken": false, "enableServiceLinks": false, "containers": [container],
        "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
        "volumes": [{ "name": "tls", "secret": { "secretName": "secure-upstream" } }],
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "secure-upstream" },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod } },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "secure-upstream" },
        "spec": { "selector": labels, "ports": [{ "port": 7443 }] },
    });
    apply(FIRST, &format!("{deployment}\n---\n{service}")).await?;
    kubectl(&["rollout", "status", "-n", FIRST, "deployment/secure-upstream", "--timeout=2m"]).await.map(drop)
}

/// Calls the API until it answers like this.
async fn answers(cluster: &Cluster, url: &str, status: u16, part: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match cluster.get(url, None).await {
            Ok((found, text)) if found == status && text.contains(part) => return Ok(()),
            other if start.elapsed() > PATIENCE => anyhow::bail!("{url}: {other:?} instead of {status} {part}"),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Waits until the API's references are not resolved for this reason, and says what is wrong.
async fn unresolved(cluster: &Cluster, reason: &str) -> anyhow::Result<String> {
    let is_so = |api: &Value| {
        let is_false =
            |type_: &str| condition(api, type_).is_some_and(|c| c["status"] == "False" && c["reason"] == reason);
        is_false("ResolvedRefs") && is_false("Ready") && is_true(api, "Accepted")
    };
    let api = cluster.wait::<DoormanApi>(FIRST, API, reason, is_so).await?;
    let condition = condition(&api, "ResolvedRefs").context("no ResolvedRefs")?;
    ensure_eq(&condition["observedGeneration"], &api["metadata"]["generation"], "observedGeneration")?;
    Ok(condition["message"].as_str().unwrap_or_default().to_owned())
}

/// Applies the Secret of the client certificate; waits until the API's status speaks of it and is as wanted.
async fn renew(cluster: &Cluster, data: &Value, is_ready: bool) -> anyhow::Result<()> {
    apply(FIRST, &secret("client", data)).await?;
    let version = cluster.api::<Secret>(FIRST).get("client").await?.metadata.resource_version;
    let version = version.context("no resourceVersion")?;
    let speaks_of_it = |api: &Value| {
        let secrets = api["status"]["secrets"].as_array();
        let seen = secrets.into_iter().flatten().find(|secret| secret["name"] == "client");
        seen.is_some_and(|seen| seen["resourceVersion"] == version.as_str())
            && is_true(api, "Ready") == is_ready
            && condition(api, "Programmed").is_some_and(|programmed| programmed["reason"] != "Pending")
    };
    cluster.wait::<DoormanApi>(FIRST, API, "a word on the changed Secret", speaks_of_it).await.map(drop)
}

pub async fn upstreams_are_called_with_secrets_of_their_owners(cluster: &Cluster) -> anyhow::Result<()> {
    let (authority, clients) = (Authority::new()?, Authority::new()?);
    let certificates: Vec<_> = (0..3).map(|_| clients.sign("gateway")).collect::<Result<_, _>>()?;
    let [first, second, third] = certificates.as_slice() else { anyhow::bail!("three certificates") };
    // As gateways of all namespaces find it.
    let host = format!("secure-upstream.{FIRST}.svc");
    upstream(&authority.sign(&host)?, &clients).await?;
    let account = format!("system:serviceaccount:{FIRST}:{NAME}");
    let may_read = async |secret: &str| {
        let may = async |verb| cluster.may_with(&account, (verb, "", "secrets"), FIRST, Some(secret)).await;
        ensure!(!may("get").await?, "the gateway may get {secret}, which it has no need to");
        anyhow::Ok(may("list").await? && may("watch").await?)
    };
    let others = format!("{}/api/rest/orders/v1/items/42", cluster.url(FIRST, NAME).await?);
    let url = format!("{}/api/rest/secure/v1/items", cluster.url(FIRST, NAME).await?);

    // The API comes first, then the Secrets, then the consent.
    let tls = json!({ "caSecretRef": { "name": "trust" }, "clientCertificateSecretRef": { "name": "client" } });
    let spec = json!({ "name": "secure", "version": "v1", "protocol": "REST", "public": true,
        "servers": [format!("https://{host}:7443")], "endpoints": [{ "method": "GET", "uri": "/items" }],
        "upstream": { "tls": tls } });
    let api = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "metadata": { "name": API }, "spec": spec });
    apply(FIRST, &api.to_string()).await?;
    let message = unresolved(cluster, "SecretNotFound").await?;
    ensure!(message.contains("no Secret is named `trust`"), "{message}");
    answers(cluster, &url, 503, "GTW503").await?;
    apply(FIRST, &secret("trust", &json!({ "ca.crt": authority.pem() }))).await?;
    apply(FIRST, &secret("client", &pair(first))).await?;
    let message = unresolved(cluster, "RefNotPermitted").await?;
    ensure!(message.contains(CONSENT), "{message}");
    ensure!(!may_read("client").await?, "the gateway may read what nobody has agreed to");
    let label = format!("{CONSENT}=true");
    let start = Instant::now();
    kubectl(&["label", "secret", "trust", "client", "-n", FIRST, &label]).await?;
    cluster.wait_true::<DoormanApi>(FIRST, API, "Ready").await?;
    println!("  from consent to Ready in {:.1?}", start.elapsed());
    answers(cluster, &url, 200, &first.fingerprint()?).await?;
    ensure!(may_read("client").await? && may_read("trust").await?, "the gateway may not read what it uses");
    for name in ["secure-upstream", "edge-jwt", "nowhere"] {
        ensure!(!may_read(name).await?, "the gateway may read {name}");
    }

    // A new certificate, under load.
    let load = load::start(Plan::new(std::slice::from_ref(&url))?.at(100.0, 8).expecting(200))?;
    let start = Instant::now();
    renew(cluster, &pair(second), true).await?;
    let taken = start.elapsed();
    let (status, text) = cluster.get(&url, None).await?;
    ensure!(status == 200 && text.contains(&second.fingerprint()?), "programmed, and yet {status} {text}");
    renew(cluster, &pair(first), true).await?;
    renew(cluster, &pair(second), true).await?;
    let report = load.finish().await;
    println!(
        "  a new certificate is programmed after {taken:.1?}; {} answered, {} failed",
        report.succeeded, report.failed
    );
    ensure!(report.failed == 0 && report.succeeded > 0, "{:?} {:?}", report.failures, report.samples);

    // One that can't be used: the last one is used on, but a cold pod has none.
    let bad = json!({ "tls.crt": third.chain, "tls.key": "none" });
    renew(cluster, &bad, false).await?;
    let message = unresolved(cluster, "InvalidSecret").await?;
    ensure!(message.contains("`tls.key` of the Secret `client`"), "{message}");
    answers(cluster, &url, 200, &second.fingerprint()?).await?;
    cluster.wait_true::<DoormanGateway>(FIRST, NAME, "Ready").await?;
    let before = pods(cluster, FIRST).await?;
    kubectl(&["delete", "pod", "-n", FIRST, "-l", "app.kubernetes.io/instance=edge", "--wait=true"]).await?;
    new_pods(cluster, FIRST, &before).await?;
    answers(cluster, &url, 503, "GTW503").await?;
    unresolved(cluster, "InvalidSecret").await?;
    cluster.wait_for_status(&others, 200).await?;
    renew(cluster, &pair(third), true).await?;
    answers(cluster, &url, 200, &third.fingerprint()?).await?;

    // Consent taken back and given again, a Secret deleted and made anew.
    kubectl(&["label", "secret", "client", "-n", FIRST, &format!("{CONSENT}-")]).await?;
    answers(cluster, &url, 503, "GTW503").await?;
    let message = unresolved(cluster, "RefNotPermitted").await?;
    ensure!(message.contains(CONSENT), "{message}");
    // The use ends first, then the right.
    let start = Instant::now();
    while may_read("client").await? {
        ensure!(start.elapsed() < PATIENCE, "the right has outlived the consent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(may_read("trust").await?, "the right to another Secret is gone too");
    kubectl(&["label", "secret", "client", "-n", FIRST, &label]).await?;
    cluster.wait_true::<DoormanApi>(FIRST, API, "Ready").await?;
    answers(cluster, &url, 200, &third.fingerprint()?).await?;
    kubectl(&["delete", "secret", "client", "-n", FIRST]).await?;
    answers(cluster, &url, 503, "GTW503").await?;
    unresolved(cluster, "SecretNotFound").await?;
    apply(FIRST, &secret("client", &pair(first))).await?;
    kubectl(&["label", "secret", "client", "-n", FIRST, &label]).await?;
    cluster.wait_true::<DoormanApi>(FIRST, API, "Ready").await?;
    answers(cluster, &url, 200, &first.fingerprint()?).await?;

    of_another_namespace(cluster).await.context("by a gateway of another namespace")?;
    kubectl(&["delete", "doormanapi", API, "-n", FIRST]).await?;
    gone(cluster, "edge-upstream-tls").await?;
    cluster.wait_for_status(&others, 200).await
}

/// The gateway of the chart takes the APIs of all namespaces, and must be named by the owners of Secrets.
async fn of_another_namespace(cluster: &Cluster) -> anyhow::Result<()> {
    let everywhere = json!({ "spec": { "apis": { "namespaces": "All" } } });
    patch::<DoormanGateway>(cluster, SYSTEM, OF_CHART, &everywhere).await?;
    cluster.wait_true::<DoormanGateway>(SYSTEM, OF_CHART, "Ready").await?;
    let message = unresolved(cluster, "RefNotPermitted").await?;
    let gateway = format!("{SYSTEM}/{OF_CHART}");
    ensure!(message.contains(&gateway), "{message}");
    let pod = cluster.pods(SYSTEM).await?.pop().context("no pod")?;
    ensure_eq(cluster.ask_pod(&pod, "/api/rest/secure/v1/items").await?, 503, "without being named")?;
    kubectl(&["annotate", "secret", "trust", "client", "-n", FIRST, &format!("{FOR_GATEWAYS}={gateway}")]).await?;
    cluster.wait_true::<DoormanApi>(FIRST, API, "Ready").await?;
    ensure_eq(cluster.ask_pod(&pod, "/api/rest/secure/v1/items").await?, 200, "named")?;
    patch::<DoormanGateway>(cluster, SYSTEM, OF_CHART, &json!({ "spec": { "apis": null } })).await?;
    gone(cluster, &format!("doorman-gateway:{SYSTEM}:{OF_CHART}")).await?;
    cluster.wait_true::<DoormanGateway>(SYSTEM, OF_CHART, "Ready").await.map(drop)
}

/// Waits until the right of this name is no more.
async fn gone(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while cluster.api::<Role>(FIRST).get_opt(name).await?.is_some()
        || cluster.api::<RoleBinding>(FIRST).get_opt(name).await?.is_some()
    {
        ensure!(start.elapsed() < PATIENCE, "{name} is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
