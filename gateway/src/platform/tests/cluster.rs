//! A gateway whose definitions are in a cluster, for tests.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use doorman_crds::selection::Selection;
use http::Response;
use http_body_util::Full;

use super::*;
use crate::{
    definitions::{Definitions, writer::Writer},
    snapshot::Compiler,
    upstream::{PoolOptions, Pools},
};

/// Objects by plural and name.
pub(super) type Objects = BTreeMap<(String, String), Value>;

/// Where what is defined is served.
pub(super) type Served = (Arc<Identity>, Arc<ArcSwap<Snapshot>>, watch::Sender<()>);

/// Stands in for an API server and the gateway's watch on it: keeps objects, counts generations, refuses to change what it
/// has in another state, tells what it keeps. How server-side apply merges fields is its own business; that is played
/// with a real one in tests/e2e.
pub(super) struct Cluster {
    pub(super) objects: Mutex<Objects>,
    pub(super) served: Mutex<Vec<Served>>,
    pub(super) versions: AtomicU64,
    /// Whether what is written is served.
    pub(super) is_watched: bool,
    /// The answer to every apply, instead.
    pub(super) answer: Option<Value>,
    /// How many of the next applies somebody else is faster than.
    pub(super) overtaken: AtomicU64,
}

fn entry(manager: &str) -> Value {
    json!({ "manager": manager, "operation": "Apply", "apiVersion": "doorman.dev/v1alpha1", "fieldsType": "FieldsV1",
        "fieldsV1": { "f:spec": {} } })
}

fn status(code: u16, reason: &str) -> (u16, Value) {
    (code, json!({ "kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": "none" }))
}

impl Cluster {
    pub(super) fn usual() -> Self {
        Self {
            objects: Mutex::default(),
            served: Mutex::default(),
            versions: AtomicU64::default(),
            is_watched: true,
            answer: None,
            overtaken: AtomicU64::default(),
        }
    }

    fn version(&self) -> Value {
        self.versions.fetch_add(1, Ordering::Relaxed).to_string().into()
    }

    fn answer(
        &self,
        method: &Method,
        id: &(String, String),
        query: &str,
        is_apply: bool,
        body: &Value,
    ) -> (u16, Value) {
        let mut objects = self.objects.lock().unwrap();
        if *method == Method::PATCH
            && let Some(answer) = &self.answer
        {
            return (u16::try_from(answer["code"].as_u64().unwrap()).unwrap(), answer.clone());
        }
        let found = objects.get(id).cloned();
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        match *method {
            Method::GET => found.map_or(status(404, "NotFound"), |object| (200, object)),
            Method::DELETE => {
                let Some(found) = found else { return status(404, "NotFound") };
                if body["preconditions"]["resourceVersion"] != version(&found) {
                    return status(409, "Conflict");
                }
                assert_eq!(body["preconditions"]["uid"], found["metadata"]["uid"]);
                objects.remove(id);
                (200, json!({ "kind": "Status", "status": "Success" }))
            }
            _ => {
                let one_less = |left: u64| left.checked_sub(1);
                if is_apply && self.overtaken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                    return status(409, "Conflict");
                }
                if version(body) != found.as_ref().map_or(Value::Null, version) {
                    return status(409, "Conflict");
                }
                let mut object = if is_apply {
                    applied(found.as_ref(), body, &id.1)
                } else {
                    let mut object = found.unwrap();
                    merge(&mut object, body);
                    object
                };
                object["metadata"]["resourceVersion"] = self.version();
                if !query.contains("dryRun=All") {
                    objects.insert(id.clone(), object.clone());
                }
                (200, object)
            }
        }
    }

    /// What somebody else does in the cluster.
    pub(super) fn put(&self, kind: &str, name: &str, manager: &str, spec: &Value) {
        let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": kind, "spec": spec, "metadata": {
            "name": name, "namespace": "edge", "uid": name, "generation": 1, "resourceVersion": self.version(),
            "managedFields": [entry(manager)] } });
        self.objects.lock().unwrap().insert((plural(kind), name.to_owned()), object);
    }

    /// Changes an object as somebody else would.
    pub(super) fn edit(&self, kind: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut objects = self.objects.lock().unwrap();
        let object = objects.get_mut(&(plural(kind), name.to_owned())).unwrap();
        change(object);
        object["metadata"]["resourceVersion"] = self.version();
    }

    pub(super) fn serve(&self) {
        let mut definitions = Definitions::default();
        for ((plural, name), object) in self.objects.lock().unwrap().iter() {
            let id = ("edge".to_owned(), name.clone());
            let object = object.clone();
            match plural.as_str() {
                "doormanroles" => drop(definitions.roles.insert(id, Arc::new(serde_json::from_value(object).unwrap()))),
                _ => drop(definitions.apis.insert(id, Arc::new(serde_json::from_value(object).unwrap()))),
            }
        }
        for served in self.served.lock().unwrap().iter() {
            serve(&served.0, &served.1, &definitions);
            served.2.send_replace(());
        }
    }

    pub(super) fn object(&self, kind: &str, name: &str) -> Value {
        self.objects.lock().unwrap().get(&(plural(kind), name.to_owned())).cloned().unwrap_or_default()
    }
}

fn plural(kind: &str) -> String {
    format!("{}s", kind.to_ascii_lowercase())
}

fn applied(found: Option<&Value>, body: &Value, name: &str) -> Value {
    let before = |member: &str| found.map_or(Value::Null, |found| found["metadata"][member].clone());
    let generation = before("generation").as_i64().unwrap_or_default();
    let is_same = found.is_some_and(|found| found["spec"] == body["spec"]);
    let mut object = body.clone();
    object["metadata"]["uid"] = name.into();
    object["metadata"]["generation"] = (generation + i64::from(!is_same)).into();
    object["metadata"]["annotations"] = before("annotations");
    let mut fields: Vec<Value> = before("managedFields").as_array().cloned().unwrap_or_default();
    fields.retain(|entry| entry["manager"] != "doorman-platform");
    fields.push(entry("doorman-platform"));
    object["metadata"]["managedFields"] = fields.into();
    object
}

/// A JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Some(members) = patch.as_object() else { return *target = patch.clone() };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in members {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

/// Serves what is defined.
pub(super) fn serve(identity: &Identity, snapshot: &ArcSwap<Snapshot>, definitions: &Definitions) {
    let options = PoolOptions {
        max_connections: 1,
        max_idle: 1,
        idle_life: Duration::from_secs(1),
        http2: false,
        allow_loopback: true,
    };
    let compiled = Compiler::new(Pools::new(options)).compile(definitions);
    identity.define_roles(compiled.roles.clone());
    snapshot.store(Arc::new(compiled));
}

pub(super) async fn writing(writing: Writing) -> Fixture {
    let pairs = [
        ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"),
        ("DOORMAN_ADMIN_PASSWORD", PASSWORD),
        ("LOGIN_IP_RATE_LIMIT", "1000"),
    ];
    let settings = Settings::load(Source::from_pairs(pairs)).unwrap_or_else(|errors| panic!("{errors}")).0;
    let store = Store::open(&settings).await.unwrap();
    Fixture::writing(settings, store, writing)
}

pub(super) async fn in_cluster(cluster: Cluster) -> (Fixture, Arc<Cluster>) {
    let cluster = Arc::new(cluster);
    (pod(&cluster).await, cluster)
}

/// A gateway of this cluster.
pub(super) async fn pod(cluster: &Arc<Cluster>) -> Fixture {
    let kept = cluster.clone();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let cluster = kept.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let start = "/apis/doorman.dev/v1alpha1/namespaces/edge/";
            let path = parts.uri.path().strip_prefix(start).unwrap_or_else(|| panic!("{}", parts.uri));
            let (plural, name) = path.split_once('/').unwrap();
            let query = parts.uri.query().unwrap_or_default();
            let content = parts.headers.get("content-type").map_or("", |value| value.to_str().unwrap());
            let is_apply = content == "application/apply-patch+yaml";
            if parts.method == Method::PATCH {
                assert!(query.contains("fieldManager=doorman-platform"), "{query}");
                assert!(is_apply || content == "application/merge-patch+json", "{content}");
            }
            // Whoever else waits may be first.
            tokio::task::yield_now().await;
            let id = (plural.to_owned(), name.to_owned());
            let (status, answer) = cluster.answer(&parts.method, &id, query, is_apply, &body);
            if cluster.is_watched && parts.method != Method::GET {
                cluster.serve();
            }
            let answer = Full::new(bytes::Bytes::from(answer.to_string()));
            Ok::<_, Infallible>(Response::builder().status(status).body(answer).unwrap())
        }
    });
    let client = kube::Client::new(service, "edge");
    let served = watch::Sender::new(());
    let writer = Writer::new(client, Selection::new("edge", "main", None), served.subscribe());
    let fixture = writing(Writing::Cluster(writer)).await;
    let serves = (fixture.identity.clone(), fixture.snapshot.clone(), served);
    cluster.served.lock().unwrap().push(serves);
    fixture
}

#[track_caller]
pub(super) fn refused(seen: &Seen, status: u16, code: &str, part: &str) {
    let body = seen.json();
    assert_eq!((seen.status, &body["error_code"]), (status, &json!(code)), "{seen:?}");
    assert!(body["error_message"].as_str().unwrap().contains(part), "{part:?} is not in {seen:?}");
}
