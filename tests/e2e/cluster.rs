//! The cluster under test: what a user does with kubectl and helm, and what a test waits for.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::TryStreamExt;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Node, Pod, Secret, Service};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Verb, group and resource; a subresource follows its resource after a slash.
pub type Deed<'a> = (&'a str, &'a str, &'a str);

/// What an object of the cluster looks like.
pub type Seen<'a> = &'a Value;

#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    pub http: reqwest::Client,
    node: String,
}

impl Cluster {
    pub async fn connect() -> anyhow::Result<Self> {
        let client = Client::try_default().await.context("KUBECONFIG names no cluster")?;
        let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
        let addresses = nodes.items.iter().filter_map(|node| node.status.as_ref()?.addresses.as_ref()).flatten();
        let node =
            addresses.filter(|address| address.type_ == "InternalIP").map(|address| address.address.clone()).next();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).no_proxy().build()?;
        Ok(Self { client, http, node: node.context("no node has an address")? })
    }

    pub fn api<K: Resource<DynamicType = ()>>(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<K>(&()))
    }

    /// Waits until the object is as wanted and returns it; the error shows what it was instead.
    pub async fn wait<K: Resource<DynamicType = ()>>(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        is_wanted: impl Fn(Seen<'_>) -> bool,
    ) -> anyhow::Result<Value> {
        let api = self.api::<K>(namespace);
        let holds = |object: Option<&DynamicObject>| object.is_some_and(|object| is_wanted(&whole(object)));
        if let Ok(found) = timeout(PATIENCE, await_condition(api.clone(), name, holds)).await {
            return Ok(whole(&found?.context("the object is gone")?));
        }
        let last = api.get_opt(name).await?.map(|object| object.data["status"].to_string());
        bail!("{} {namespace}/{name}: waited in vain for {what}; its status: {last:?}", K::kind(&()))
    }

    /// A condition of the newest generation is true.
    pub async fn wait_true<K: Resource<DynamicType = ()>>(
        &self,
        namespace: &str,
        name: &str,
        type_: &str,
    ) -> anyhow::Result<Value> {
        self.wait::<K>(namespace, name, &format!("{type_}=True"), |object| is_true(object, type_)).await
    }

    /// Waits until the condition of the newest generation is true of so many objects with these labels. Unlike
    /// `kubectl wait` it does not ask for one after the other, at five a second.
    pub async fn wait_all_true<K: Resource<DynamicType = ()>>(
        &self,
        namespace: &str,
        labels: &str,
        type_: &str,
        count: usize,
    ) -> anyhow::Result<()> {
        let mut true_of = BTreeSet::new();
        let all = async {
            let objects = watcher(self.api::<K>(namespace), watcher::Config::default().labels(labels));
            let mut objects = Box::pin(objects.applied_objects());
            while let Some(object) = objects.try_next().await? {
                let name = object.metadata.name.clone().unwrap_or_default();
                if is_true(&whole(&object), type_) {
                    true_of.insert(name)
                } else {
                    true_of.remove(&name)
                };
                if true_of.len() == count {
                    return anyhow::Ok(());
                }
            }
            bail!("the watch has ended")
        };
        if let Ok(result) = timeout(PATIENCE, all).await {
            return result;
        }
        bail!("{type_}=True of {} {} in {namespace} only, not of {count}", true_of.len(), K::plural(&()))
    }

    /// Whether this user may do this, as the API server sees it.
    pub async fn may(&self, user: &str, deed: Deed<'_>, namespace: &str) -> anyhow::Result<bool> {
        self.may_with(user, deed, namespace, None).await
    }

    /// The same with the object of this name.
    pub async fn may_with(
        &self,
        user: &str,
        (verb, group, resource): Deed<'_>,
        namespace: &str,
        name: Option<&str>,
    ) -> anyhow::Result<bool> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: Some(subresource.to_owned()),
            namespace: Some(namespace.to_owned()),
            name: name.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.to_owned()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        Ok(answer.status.context("no answer to a SubjectAccessReview")?.allowed)
    }

    /// The ready pods of a gateway.
    pub async fn pods(&self, namespace: &str) -> anyhow::Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pods = api.list(&ListParams::default().labels("app.kubernetes.io/name=doorman-gateway")).await?;
        Ok(pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod)).collect())
    }

    /// Base URL of a Service by its node port.
    pub async fn url(&self, namespace: &str, service: &str) -> anyhow::Result<String> {
        let service = Api::<Service>::namespaced(self.client.clone(), namespace).get(service).await?;
        let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let port = ports.first().and_then(|port| port.node_port).context("the Service has no node port")?;
        Ok(format!("http://{}:{port}", self.node))
    }

    pub async fn secret(&self, namespace: &str, name: &str, key: &str) -> anyhow::Result<String> {
        let secret = Api::<Secret>::namespaced(self.client.clone(), namespace).get(name).await?;
        let value = secret.data.unwrap_or_default().remove(key).with_context(|| format!("{name} has no {key}"))?;
        Ok(String::from_utf8(value.0)?)
    }

    /// Calls a URL until it answers with this status: a Service's rules come a moment after its pods.
    pub async fn wait_for_status(&self, url: &str, status: u16) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let answer = self.http.get(url).send().await.map(|answer| answer.status().as_u16());
            match answer {
                Ok(found) if found == status => return Ok(()),
                other if start.elapsed() > PATIENCE => bail!("{url}: {other:?} instead of {status}"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub async fn get(&self, url: &str, token: Option<&str>) -> anyhow::Result<(u16, String)> {
        let request = self.http.get(url);
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// What one pod answers on its traffic port. Only the pods of the test cluster can be reached from here; others are
    /// asked through their API server, which takes longer.
    pub async fn ask_pod(&self, pod: &Pod, path: &str) -> anyhow::Result<u16> {
        if kit().is_some() {
            let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
            let url = format!("http://{}:5001{path}", address.context("a pod without an address")?);
            return Ok(self.http.get(url).send().await?.status().as_u16());
        }
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        let (namespace, name) = namespace.zip(name).context("a pod without a name")?;
        let uri = format!("/api/v1/namespaces/{namespace}/pods/{name}:5001/proxy{path}");
        // The pod's own status, whatever it is: not an answer in the form of Kubernetes.
        let request = http::Request::get(uri).body(kube::client::Body::empty())?;
        let answer = self.client.send(request).await.with_context(|| format!("asking {name} for {path}"))?;
        Ok(answer.status().as_u16())
    }
}

fn whole(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

pub fn condition<'a>(object: Seen<'a>, type_: &str) -> Option<Seen<'a>> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

pub fn is_true(object: Seen<'_>, type_: &str) -> bool {
    let is_current = |condition: Seen<'_>| condition["observedGeneration"] == object["metadata"]["generation"];
    condition(object, type_).is_some_and(|condition| condition["status"] == "True" && is_current(condition))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} can't be run"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub async fn kubectl(arguments: &[&str]) -> anyhow::Result<String> {
    run("kubectl", arguments, "").await
}

pub async fn apply(namespace: &str, manifests: &str) -> anyhow::Result<String> {
    run("kubectl", &["apply", "--server-side", "-n", namespace, "-f", "-"], manifests).await
}

pub async fn helm(arguments: &[&str]) -> anyhow::Result<String> {
    run("helm", arguments, "").await
}

/// The test cluster's own tool, unless the cluster is another one.
pub fn kit() -> Option<String> {
    std::env::var("DOORMAN_TEST_CLUSTER").ok().filter(|path| !path.is_empty())
}

pub async fn kit_program(what: &str, program: &str) -> anyhow::Result<()> {
    let kit = kit().context("not the test cluster")?;
    run(&kit, &[what, program], "").await.map(drop)
}

pub fn ensure_eq<T: PartialEq + Debug>(found: T, wanted: T, what: &str) -> anyhow::Result<()> {
    ensure!(found == wanted, "{what}: {found:?} instead of {wanted:?}");
    Ok(())
}
