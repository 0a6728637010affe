//! Definitions that the platform API writes: through the API server, by server-side apply, under one field manager.
//!
//! In: how an object should be, given how it is. Out: which state of it the API server has taken. What always holds:
//! but for an adoption nothing is forced, and an object that is not the platform's own (see [`Owner`]) is left as it is; a
//! change is made on the state that was looked at, or not at all; what the gateway would not take, and so never serve, is
//! not written; no answer of the API server is waited for longer than [`PATIENCE`].

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::Arc;
use std::time::Duration;

use doorman_crds::gateway::{GatewayRef, Namespaces};
use doorman_crds::selection::{Selection, matches};
use doorman_crds::{DoormanApi, DoormanRole};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, LabelSelector, ManagedFieldsEntry, ObjectMeta};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::Status;
use kube::core::object::HasSpec;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, sleep, timeout};

use super::owner::{MANAGED_BY, Origin, Owner, PLATFORM, RELEASED, without_others, without_platform};

/// Longest wait for one answer of the API server.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait until this process serves what was written.
pub const SERVED: Duration = Duration::from_secs(5);
/// How long a change is made anew because somebody else was faster: another pod, or a status of the operator.
const CONTENDED: Duration = Duration::from_secs(5);
/// Longest wait for the changes that came before.
const TURN: Duration = Duration::from_secs(10);
/// Longest name of an object; it fits where a DNS label must.
const MAX_NAME: usize = 63;

/// Where the platform API writes definitions.
#[derive(Clone, Debug)]
pub enum Writing {
    /// To the document store: there is no cluster.
    Documents,
    /// Nowhere: they are the cluster's.
    ReadOnly,
    /// To the cluster.
    Cluster(Writer),
}

/// A kind that the platform API may write.
pub trait Definition:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasSpec<Spec: Clone + Serialize + Send + Sync>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
{
    /// What its objects define, as people call them.
    const KINDS: &'static str;

    /// The gateways that take an object of this spec; `None`: all.
    fn gateway_refs(spec: &mut Self::Spec) -> &mut Option<Vec<GatewayRef>>;

    /// What it defines, as people call it: `Role ops`.
    fn called(spec: &Self::Spec) -> String;
}

impl Definition for DoormanRole {
    const KINDS: &'static str = "Roles";

    fn gateway_refs(spec: &mut Self::Spec) -> &mut Option<Vec<GatewayRef>> {
        &mut spec.gateway_refs
    }

    fn called(spec: &Self::Spec) -> String {
        format!("Role {}", spec.name)
    }
}

impl Definition for DoormanApi {
    const KINDS: &'static str = "APIs";

    fn gateway_refs(spec: &mut Self::Spec) -> &mut Option<Vec<GatewayRef>> {
        &mut spec.gateway_refs
    }

    fn called(spec: &Self::Spec) -> String {
        format!("API {}/{}", spec.name, spec.version)
    }
}

/// Why nothing was written.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WriteError {
    /// The object is somebody else's.
    #[error("{kind} {namespace}/{name} is that of {owner}")]
    Owned {
        /// Whose.
        owner: String,
        /// Its kind.
        kind: String,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The object is kept by a tool that would take it back.
    #[error("{0} keeps it and would take it back")]
    Kept(String),
    /// The API server finds fault with it, or the gateway would not take it, in these words.
    #[error("it is refused: {0}")]
    Refused(String),
    /// Others kept changing it.
    #[error("it was changed by others at the same time")]
    Changed,
    /// The account of the gateway may not.
    #[error("the API server does not allow it: {0}")]
    Forbidden(String),
    /// The API server gives no answer, or none that helps.
    #[error("the API server is away: {0}")]
    Away(String),
}

/// The cluster, for writing definitions of one gateway. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    selection: Arc<Selection>,
    served: watch::Receiver<()>,
    /// Changes of one process are made one after the other: each is made on the state that the one before has left.
    turns: Arc<Semaphore>,
}

impl Debug for Writer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Writer").field("selection", &self.selection).finish_non_exhaustive()
    }
}

impl Writer {
    /// Writes for the gateway of this selection; `served` tells of each snapshot that is served from now on.
    pub fn new(client: Client, selection: Selection, served: watch::Receiver<()>) -> Self {
        Self { client, selection: Arc::new(selection), served, turns: Arc::new(Semaphore::new(1)) }
    }

    /// Where it writes.
    pub fn namespace(&self) -> &str {
        &self.selection.namespace
    }

    /// The reference that makes an object this gateway's alone.
    pub fn gateway_ref(&self) -> GatewayRef {
        GatewayRef { name: self.selection.name.clone(), namespace: None }
    }

    fn api<K: Definition>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), self.namespace())
    }

    /// Creates the object of this name, or changes it to what `make` makes of it as it is now; `what` it must define.
    /// `None`: `make` leaves it as it is.
    ///
    /// # Errors
    /// What `make` says, or a [`WriteError`]; then nothing was written, unless the API server is away.
    pub async fn write<K: Definition, E: From<WriteError>>(
        &self,
        name: &str,
        what: &str,
        make: impl Fn(Option<&K::Spec>) -> Result<Option<K::Spec>, E>,
    ) -> Result<Option<Origin>, E> {
        self.change::<K, E>(name, what, &make, &PatchParams::apply(PLATFORM)).await
    }

    /// Asks the API server what it would say to [`Self::write`].
    ///
    /// # Errors
    /// The same.
    pub async fn check<K: Definition, E: From<WriteError>>(
        &self,
        name: &str,
        what: &str,
        make: impl Fn(Option<&K::Spec>) -> Result<Option<K::Spec>, E>,
    ) -> Result<(), E> {
        self.change::<K, E>(name, what, &make, &PatchParams::apply(PLATFORM).dry_run()).await.map(drop)
    }

    async fn change<K: Definition, E: From<WriteError>>(
        &self,
        name: &str,
        what: &str,
        make: &impl Fn(Option<&K::Spec>) -> Result<Option<K::Spec>, E>,
        parameters: &PatchParams,
    ) -> Result<Option<Origin>, E> {
        let _turn = self.turn().await?;
        let mut tries = Tries::new();
        loop {
            let found = self.find::<K>(name).await?;
            if let Some(other) = found.as_ref().map(|found| K::called(found.spec())).filter(|other| other != what) {
                return Err(self.owned::<K>(name, &other).into());
            }
            let Some(mut wanted) = make(found.as_ref().map(HasSpec::spec))? else { return Ok(None) };
            *K::gateway_refs(&mut wanted) = match &found {
                Some(found) => refs::<K>(found),
                None => Some(vec![self.gateway_ref()]),
            };
            match self.apply(name, found.as_ref(), &wanted, parameters).await {
                Err(WriteError::Changed) => tries.again().await?,
                other => return Ok(other.map(|object: K| Some(Origin::of(object.meta(), None)))?),
            }
        }
    }

    /// Takes over an object of somebody else in the namespace of the gateway. One that a tool keeps as it is elsewhere
    /// only when `is_forced`.
    ///
    /// # Errors
    /// [`WriteError`]; then the object is not the platform's yet.
    pub async fn adopt<K: Definition>(&self, name: &str, is_forced: bool) -> Result<Origin, WriteError> {
        let _turn = self.turn().await?;
        let mut tries = Tries::new();
        loop {
            let found = self.get::<K>(name).await?.ok_or(WriteError::Changed)?;
            self.must_be_of_this_gateway(name, &found)?;
            let owner = Owner::of(found.meta());
            if owner == Owner::Platform {
                return Ok(Origin::of(found.meta(), None));
            }
            if let Some(tool) = owner.keeper().filter(|_| !is_forced) {
                return Err(WriteError::Kept(tool.to_owned()));
            }
            match self.take_over(name, &found).await {
                Err(WriteError::Changed) => tries.again().await?,
                other => return other,
            }
        }
    }

    /// First every field becomes the platform's too, then nobody else's; so no field is nobody's in between.
    async fn take_over<K: Definition>(&self, name: &str, found: &K) -> Result<Origin, WriteError> {
        let forced = PatchParams::apply(PLATFORM).force();
        let applied: K = self.apply(name, Some(found), found.spec(), &forced).await?;
        let fields = without_others(applied.meta());
        let metadata = json!({ "managedFields": fields, "annotations": { RELEASED: null } });
        self.merge(name, &applied, metadata).await
    }

    /// Gives an object of the platform away: whoever applies it next meets no conflict and is its owner.
    ///
    /// # Errors
    /// [`WriteError`]; then the object is the platform's still.
    pub async fn release<K: Definition>(&self, name: &str) -> Result<Origin, WriteError> {
        let _turn = self.turn().await?;
        let mut tries = Tries::new();
        loop {
            let found = self.find::<K>(name).await?.ok_or(WriteError::Changed)?;
            let mut fields = without_platform(found.meta());
            // An object whose fields are all nobody's is taken by the API server for one that was there before it kept
            // count, and the next apply would conflict with that.
            fields.push(ManagedFieldsEntry {
                manager: Some(PLATFORM.to_owned()),
                operation: Some("Update".to_owned()),
                api_version: Some(K::api_version(&()).into_owned()),
                fields_type: Some("FieldsV1".to_owned()),
                fields_v1: Some(FieldsV1(
                    json!({ "f:metadata": { "f:annotations": { format!("f:{RELEASED}"): {} } } }),
                )),
                ..ManagedFieldsEntry::default()
            });
            let metadata = json!({ "managedFields": fields, "annotations": { RELEASED: "true" },
                "labels": { MANAGED_BY: null } });
            match self.merge(name, &found, metadata).await {
                Err(WriteError::Changed) => tries.again().await?,
                other => return other,
            }
        }
    }

    /// Changes metadata of an object that is as it was found.
    async fn merge<K: Definition>(&self, name: &str, found: &K, mut metadata: Value) -> Result<Origin, WriteError> {
        metadata["resourceVersion"] = json!(found.meta().resource_version);
        let parameters = PatchParams { field_manager: Some(PLATFORM.to_owned()), ..PatchParams::default() };
        let patch = json!({ "metadata": metadata });
        let object = self.ask(name, self.api::<K>().patch(name, &parameters, &Patch::Merge(&patch))).await?;
        Ok(Origin::of(object.meta(), None))
    }

    /// Deletes the object of this name; `None`: there was none.
    ///
    /// # Errors
    /// [`WriteError`]; then nothing was deleted, unless the API server is away.
    pub async fn delete<K: Definition>(&self, name: &str) -> Result<Option<Origin>, WriteError> {
        let _turn = self.turn().await?;
        let mut tries = Tries::new();
        loop {
            let Some(found) = self.find::<K>(name).await? else { return Ok(None) };
            let meta = found.meta();
            let preconditions =
                Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() };
            let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match self.ask(name, self.api::<K>().delete(name, &parameters)).await {
                Ok(_) => return Ok(Some(Origin::of(meta, None))),
                Err(WriteError::Changed) => tries.again().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until this holds of what is served; `false`: it does not in time.
    pub async fn until_served(&self, holds: impl Fn() -> bool) -> bool {
        let mut served = self.served.clone();
        matches!(timeout(SERVED, served.wait_for(|()| holds())).await, Ok(Ok(_)))
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, WriteError> {
        let turn = timeout(TURN, self.turns.acquire()).await.ok().and_then(Result::ok);
        turn.ok_or_else(|| WriteError::Away(format!("other changes have kept it busy for {TURN:?}")))
    }

    async fn get<K: Definition>(&self, name: &str) -> Result<Option<K>, WriteError> {
        self.ask(name, self.api::<K>().get_opt(name)).await
    }

    /// The object of this name as the API server has it now, if it is this gateway's to write.
    async fn find<K: Definition>(&self, name: &str) -> Result<Option<K>, WriteError> {
        let Some(found) = self.get::<K>(name).await? else { return Ok(None) };
        let owner = Owner::of(found.meta());
        if owner != Owner::Platform {
            return Err(self.owned::<K>(name, &owner.to_string()));
        }
        self.must_be_of_this_gateway(name, &found)?;
        Ok(Some(found))
    }

    fn must_be_of_this_gateway<K: Definition>(&self, name: &str, found: &K) -> Result<(), WriteError> {
        let is_own = |one: &GatewayRef| {
            one.name == self.selection.name && one.namespace.as_deref().unwrap_or(self.namespace()) == self.namespace()
        };
        let is_ours = refs::<K>(found).is_none_or(|refs| refs.iter().any(is_own));
        if is_ours { Ok(()) } else { Err(self.owned::<K>(name, "another gateway")) }
    }

    async fn apply<K: Definition>(
        &self,
        name: &str,
        found: Option<&K>,
        spec: &K::Spec,
        parameters: &PatchParams,
    ) -> Result<K, WriteError> {
        // What the gateway asks for, as far as it can be given.
        let mut labels: BTreeMap<String, String> =
            self.selection.selector.as_ref().and_then(|selector| selector.match_labels.clone()).unwrap_or_default();
        labels.insert(MANAGED_BY.to_owned(), PLATFORM.to_owned());
        self.must_be_taken(found, spec, &labels).await?;
        let mut metadata = json!({ "name": name, "namespace": self.namespace(), "labels": labels });
        if let Some(version) = found.and_then(|found| found.meta().resource_version.clone()) {
            metadata["resourceVersion"] = version.into();
        }
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": metadata,
            "spec": spec,
        });
        let written = self.ask(name, self.api::<K>().patch(name, parameters, &Patch::Apply(&patch))).await;
        written.map_err(|error| match error {
            WriteError::Owned { owner, .. } => self.owned::<K>(name, &owner),
            other => other,
        })
    }

    /// What the gateway would not take would never be served, nor would it be known here to be changed or deleted.
    async fn must_be_taken<K: Definition>(
        &self,
        found: Option<&K>,
        spec: &K::Spec,
        own: &BTreeMap<String, String>,
    ) -> Result<(), WriteError> {
        let labels = found.map_or_else(|| own.clone(), |found| labels_after(found.meta(), own));
        let namespace = Some(self.namespace().to_owned());
        let meta = ObjectMeta { namespace, labels: Some(labels.clone()), ..ObjectMeta::default() };
        let refs = K::gateway_refs(&mut spec.clone()).take();
        let of_namespace = self.namespace_labels().await?;
        if self.selection.takes(&meta, refs.as_deref(), |_| of_namespace.as_ref()) {
            return Ok(());
        }
        let unmet = self.selection.selector.as_ref().and_then(|selector| unmet(selector, &labels));
        Err(WriteError::Refused(match unmet {
            Some(asked) => format!(
                "This gateway would not take it: spec.apis.selector asks for {asked}, which the platform API can't write"
            ),
            None => format!(
                "This gateway would not take it: spec.apis.namespaceSelector leaves out the namespace {}, where the \
                 platform API writes",
                self.namespace()
            ),
        }))
    }

    /// The labels of the namespace it writes to; `None` also where the gateway doesn't ask for any.
    async fn namespace_labels(&self) -> Result<Option<BTreeMap<String, String>>, WriteError> {
        if self.selection.namespaces != Namespaces::Selector {
            return Ok(None);
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let found = self.ask(self.namespace(), namespaces.get_metadata_opt(self.namespace())).await?;
        Ok(found.map(|found| found.metadata.labels.unwrap_or_default()))
    }

    fn owned<K: Definition>(&self, name: &str, owner: &str) -> WriteError {
        WriteError::Owned {
            owner: owner.to_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: self.namespace().to_owned(),
            name: name.to_owned(),
        }
    }

    async fn ask<T>(&self, name: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<T, WriteError> {
        let answer = match timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|error| self.understand(name, error)),
            Err(_) => Err(WriteError::Away(format!("no answer within {PATIENCE:?}"))),
        };
        answer.inspect_err(|error| tracing::warn!(namespace = self.namespace(), name, %error, "not written"))
    }

    fn understand(&self, name: &str, error: kube::Error) -> WriteError {
        let kube::Error::Api(status) = error else { return WriteError::Away(error.to_string()) };
        match status.code {
            409 => match holder(&status) {
                Some(owner) => WriteError::Owned {
                    owner: owner.to_string(),
                    kind: String::new(),
                    namespace: self.namespace().to_owned(),
                    name: name.to_owned(),
                },
                None => WriteError::Changed,
            },
            // It was deleted meanwhile.
            404 => WriteError::Changed,
            400 | 422 => WriteError::Refused(status.message),
            401 | 403 => WriteError::Forbidden(status.message),
            _ => WriteError::Away(status.to_string()),
        }
    }
}

/// Who holds a field that an apply would change: named in the cause as `conflict with "MANAGER" using ...`.
fn holder(status: &Status) -> Option<Owner> {
    let causes = &status.details.as_ref()?.causes;
    let cause = causes.iter().find(|cause| cause.reason == "FieldManagerConflict")?;
    Some(Owner::managed_by(cause.message.split('"').nth(1).unwrap_or("another field manager")))
}

/// The gateways that an object names.
fn refs<K: Definition>(object: &K) -> Option<Vec<GatewayRef>> {
    K::gateway_refs(&mut object.spec().clone()).take()
}

/// The labels of an object after an apply of these: those that only the platform API has applied, and no longer does, go.
fn labels_after(found: &ObjectMeta, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_ours = |entry: &ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(PLATFORM) && entry.operation.as_deref() == Some("Apply")
    };
    let goes = |label: &str| {
        let field = format!("f:{label}");
        let has_it = |fields: &FieldsV1| fields.0["f:metadata"]["f:labels"].get(&field).is_some();
        let entries = found.managed_fields.iter().flatten();
        let mut owners = entries.filter(|entry| entry.fields_v1.as_ref().is_some_and(has_it)).peekable();
        owners.peek().is_some() && owners.all(is_ours)
    };
    let mut labels = found.labels.clone().unwrap_or_default();
    labels.retain(|label, _| !goes(label));
    labels.extend(own.clone());
    labels
}

/// The first of what a selector asks for that these labels don't meet, in words.
fn unmet(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Option<String> {
    let mut wanted = selector.match_labels.iter().flatten();
    if let Some((key, value)) = wanted.find(|(key, value)| labels.get(*key) != Some(*value)) {
        return Some(format!("{key}={value}"));
    }
    let unmet = selector.match_expressions.iter().flatten().find(|one| {
        let only = LabelSelector { match_labels: None, match_expressions: Some(vec![(*one).clone()]) };
        !matches(&only, labels)
    })?;
    let asked = format!("{} {}", unmet.key, unmet.operator);
    let values = unmet.values.as_deref().unwrap_or_default();
    Some(if values.is_empty() { asked } else { format!("{asked} [{}]", values.join(", ")) })
}

/// A change that others may overtake, each time after a longer pause, but never so long that who has just made a change
/// is always faster with the next.
struct Tries {
    until: Instant,
    made: u32,
}

impl Tries {
    fn new() -> Self {
        Self { until: Instant::now() + CONTENDED, made: 0 }
    }

    /// Pauses before the next. [`WriteError::Changed`]: there is none.
    async fn again(&mut self) -> Result<(), WriteError> {
        if Instant::now() >= self.until {
            return Err(WriteError::Changed);
        }
        sleep(Duration::from_millis(fastrand::u64(0..=4 << self.made.min(4)))).await;
        self.made += 1;
        Ok(())
    }
}

/// The name of the object that defines an API. No two APIs have the same: the last hyphen of a plain one begins the
/// version.
pub fn api_object_name(name: &str, version: &str) -> String {
    let between = if version.contains('-') { '/' } else { '-' };
    object_name(&format!("{name}{between}{version}"))
}

/// The name of the object that defines something of this name: the same where it can be, else made plain, with a hash.
pub fn object_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = name.len() <= MAX_NAME
        && name.starts_with(is_plain)
        && name.ends_with(is_plain)
        && name.chars().all(|c| is_plain(c) || c == '-');
    if is_label {
        return name.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let hash = digest.iter().take(4).fold(String::with_capacity(8), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    let plain: String = name
        .chars()
        .flat_map(char::to_lowercase)
        .map(|c| if is_plain(c) { c } else { '-' })
        .take(MAX_NAME - 1 - hash.len())
        .collect();
    match plain.trim_matches('-') {
        "" => format!("d-{hash}"),
        plain => format!("{plain}-{hash}"),
    }
}

/// What the API server says to an apply that would change a field of another manager.
#[cfg(test)]
pub(crate) fn conflict(manager: &str) -> serde_json::Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409,
        "message": "Apply failed with 1 conflict", "details": { "causes": [{ "reason": "FieldManagerConflict",
        "message": format!("conflict with \"{manager}\" using doorman.dev/v1alpha1"), "field": ".spec.description" }] } })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use bytes::Bytes;
    use doorman_crds::DoormanRoleSpec;
    use doorman_crds::gateway::ApisSpec;
    use http_body_util::{BodyExt, Full};
    use proptest::prelude::*;

    use super::*;

    /// Writes for a gateway with this `spec.apis`, in a namespace with these labels; and what it has written.
    fn writer(apis: Value, labels: Value) -> (Writer, Arc<Mutex<Vec<Value>>>) {
        let written: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = written.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (kept, labels) = (kept.clone(), labels.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (status, answer): (u16, Value) = match (parts.method.as_str(), parts.uri.path()) {
                    ("GET", "/api/v1/namespaces/edge") => (200, json!({ "metadata": { "labels": labels } })),
                    ("GET", _) => (404, json!(Status::failure("none", "NotFound").with_code(404))),
                    _ => {
                        let object: Value = serde_json::from_slice(&body).unwrap();
                        kept.lock().unwrap().push(object.clone());
                        (200, object)
                    }
                };
                let answer = Full::new(Bytes::from(answer.to_string()));
                Ok::<_, Infallible>(http::Response::builder().status(status).body(answer).unwrap())
            }
        });
        let apis: ApisSpec = serde_json::from_value(apis).unwrap();
        let selection = Selection::new("edge", "main", Some(&apis));
        (Writer::new(Client::new(service, "edge"), selection, watch::channel(()).1), written)
    }

    async fn write_role(writer: &Writer) -> Result<Option<Origin>, WriteError> {
        let role: DoormanRoleSpec = serde_json::from_value(json!({ "name": "ops" })).unwrap();
        writer.write::<DoormanRole, WriteError>("ops", "Role ops", |_| Ok(Some(role.clone()))).await
    }

    #[tokio::test]
    async fn what_the_gateway_would_not_take_is_refused_and_not_written() {
        let expressions = |key: &str, operator: &str, values: Value| {
            let expression = json!({ "key": key, "operator": operator, "values": values });
            json!({ "selector": { "matchLabels": { "team": "a" }, "matchExpressions": [expression] } })
        };
        let of_namespace = json!({ "namespaces": "Selector", "namespaceSelector": { "matchLabels": { "team": "a" } } });
        for (apis, labels, refused) in [
            (expressions("tier", "In", json!(["gold", "tin"])), json!({}), Some("asks for tier In [gold, tin]")),
            (expressions("tier", "Exists", Value::Null), json!({}), Some("asks for tier Exists,")),
            (
                expressions(MANAGED_BY, "NotIn", json!([PLATFORM])),
                json!({}),
                Some("managed-by NotIn [doorman-platform]"),
            ),
            (json!({ "selector": { "matchLabels": { MANAGED_BY: "x" } } }), json!({}), Some("asks for app.kubernetes")),
            (of_namespace.clone(), json!({ "team": "b" }), Some("leaves out the namespace edge")),
            (of_namespace, json!({ "team": "a" }), None),
            (expressions("tier", "NotIn", json!(["gold"])), json!({}), None),
            (expressions("team", "In", json!(["a"])), json!({}), None),
            (json!({ "namespaces": "All" }), json!({}), None),
        ] {
            let (writer, written) = writer(apis.clone(), labels);
            let outcome = write_role(&writer).await;
            let is_as_wanted = match (&outcome, refused) {
                (Err(WriteError::Refused(reason)), Some(part)) => reason.contains(part),
                (outcome, None) => outcome.is_ok(),
                _ => false,
            };
            assert!(is_as_wanted, "{apis}: {outcome:?}");
            assert_eq!(written.lock().unwrap().len(), usize::from(refused.is_none()), "{apis}");
        }
    }

    #[test]
    fn labels_that_only_the_platform_has_applied_go_when_it_no_longer_does() {
        let entry = |manager: &str, labels: Value| {
            let fields = json!({ "f:metadata": { "f:labels": labels } });
            json!({ "manager": manager, "operation": "Apply", "fieldsV1": fields })
        };
        let fields = [
            entry(PLATFORM, json!({ "f:old": {}, "f:both": {} })),
            entry("kubectl", json!({ "f:both": {}, "f:theirs": {} })),
        ];
        let labels = json!({ "old": "1", "both": "1", "theirs": "1", "nobodys": "1" });
        let found: ObjectMeta = serde_json::from_value(json!({ "labels": labels, "managedFields": fields })).unwrap();
        let own = BTreeMap::from([("new".to_owned(), "1".to_owned())]);
        let after: Vec<_> = labels_after(&found, &own).into_keys().collect();
        assert_eq!(after, ["both", "new", "nobodys", "theirs"]);
    }

    #[test]
    fn names_stay_where_they_can_and_are_made_plain_where_not() {
        assert_eq!(object_name("ops"), "ops");
        assert_eq!(object_name("team-a-2"), "team-a-2");
        for (name, start) in
            [("Ops", "ops-"), ("ops team", "ops-team-"), ("Ärzte", "rzte-"), ("***", "d-"), ("-a-", "a-")]
        {
            let object = object_name(name);
            assert!(object.starts_with(start) && object.len() > start.len() + 7, "{name}: {object}");
        }
        assert_ne!(object_name("Ops"), object_name("OPS"));
    }

    #[test]
    fn no_two_apis_have_the_same_object() {
        assert_eq!(api_object_name("orders", "v1"), "orders-v1");
        assert_eq!(api_object_name("a-b", "c"), "a-b-c");
        assert_ne!(api_object_name("a", "b-c"), "a-b-c");
        assert_ne!(api_object_name("Orders", "v1"), api_object_name("orders", "v1"));
    }

    #[test]
    fn a_conflict_names_who_holds_the_field() {
        let status: Status = serde_json::from_value(conflict("kubectl-edit")).unwrap();
        assert_eq!(holder(&status), Some(Owner::Other("kubectl".into())));
        assert_eq!(holder(&Status::failure("the object has been modified", "Conflict")), None);
    }

    proptest! {
        #[test]
        fn every_name_makes_a_dns_label(name in ".{1,50}") {
            let object = object_name(&name);
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            prop_assert!(object.len() <= MAX_NAME && object.starts_with(is_plain) && object.ends_with(is_plain), "{}", object);
            prop_assert!(object.chars().all(|c| is_plain(c) || c == '-'), "{}", object);
        }
    }
}
