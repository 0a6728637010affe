//! Definitions from the document store: what the platform API keeps where no cluster does.
//!
//! A stored API with its endpoints becomes the same object that a manifest would be, so that one parser and one compiler
//! decide about both. What can't be read as one is named among the rejected and harms nobody else. After a change only
//! the API it belongs to is read again.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorman_crds::api::{EndpointSpec, Protocol};
use doorman_crds::path::PathTemplate;
use doorman_crds::revision::Rejection;
use doorman_crds::{DoormanApi, DoormanApiSpec, FieldError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mongodb::bson::Document;
use tokio::sync::watch;

use super::fields::{self, Misfit};
use super::{Definitions, ObjectId};
use crate::store::{Change, Collection, Listing, Store, StoreError, plain_document};

/// What stands for the namespace of stored objects; behind every real one, so that a manifest wins a conflict.
const NAMESPACE: &str = "~documents";
/// Longest wait of a write until it is served.
const SERVED_WITHIN: Duration = Duration::from_secs(5);
/// Pause before a store that failed is read again.
const RETRY: Duration = Duration::from_secs(1);

type Key = (String, String);

/// What must be read again.
#[derive(Debug, Default)]
struct Dirty {
    everything: bool,
    roles: bool,
    apis: BTreeSet<Key>,
    /// Ids of endpoints that demand something else of bodies.
    endpoints: BTreeSet<String>,
}

/// Tells how far what is served has come behind what is stored. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Progress {
    wanted: watch::Sender<u64>,
    served: watch::Sender<u64>,
}

impl Progress {
    /// Waits until everything that is stored now is served by this process. `false`: it takes too long.
    pub async fn is_served(&self) -> bool {
        let wanted = *self.wanted.borrow();
        let mut served = self.served.subscribe();
        let served = served.wait_for(|served| *served >= wanted);
        tokio::time::timeout(SERVED_WITHIN, served).await.is_ok_and(|outcome| outcome.is_ok())
    }
}

/// Stored APIs as objects, kept up to date.
pub struct Stored {
    store: Arc<Store>,
    dirty: Arc<Mutex<Dirty>>,
    progress: Progress,
    apis: BTreeMap<Key, Result<Arc<DoormanApi>, Rejection>>,
    roles: BTreeSet<String>,
}

fn lock(dirty: &Mutex<Dirty>) -> MutexGuard<'_, Dirty> {
    dirty.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes what a change of a document is about. Was it about APIs at all?
fn note(dirty: &mut Dirty, change: Change<'_>) -> bool {
    let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let api = match change {
        Change::Document(Collection::Apis, key) => key.rsplit_once('/').map(|(name, version)| pair(name, version)),
        Change::Document(Collection::Endpoints, key) => {
            let mut parts = key.splitn(4, '/').skip(1);
            parts.next().zip(parts.next()).map(|(name, version)| pair(name, version))
        }
        Change::Document(Collection::Roles, _) => {
            dirty.roles = true;
            return true;
        }
        Change::Document(Collection::EndpointValidations, id) => {
            dirty.endpoints.insert(id.to_owned());
            return true;
        }
        Change::Everything => None,
        Change::Document(..) | Change::Token(_) | Change::Other(_) => return false,
    };
    match api {
        Some(api) => drop(dirty.apis.insert(api)),
        None => dirty.everything = true,
    }
    true
}

impl Stored {
    /// Over this store; nothing is read yet.
    pub fn new(store: Arc<Store>) -> Self {
        let dirty = Arc::new(Mutex::new(Dirty { everything: true, ..Dirty::default() }));
        let progress = Progress { wanted: watch::Sender::new(1), served: watch::Sender::new(0) };
        let (noted, wanted) = (dirty.clone(), progress.wanted.clone());
        store.on_change(move |change| {
            if !note(&mut lock(&noted), change) {
                return;
            }
            wanted.send_modify(|wanted| *wanted += 1);
        });
        Self { store, dirty, progress, apis: BTreeMap::new(), roles: BTreeSet::new() }
    }

    /// For those who write and want to know when it is served.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Waits for a change that has not been read yet.
    pub async fn changed(&self) {
        let served = *self.progress.served.borrow();
        let mut wanted = self.progress.wanted.subscribe();
        // Only fails when the sender is gone, and this is its owner.
        let _ = wanted.wait_for(|wanted| *wanted > served).await;
    }

    /// Reads what changed. The number is to be given to [`Self::served`] when the outcome is served.
    ///
    /// # Errors
    /// When the store fails; what was read before stays.
    pub async fn read(&mut self) -> Result<u64, StoreError> {
        let number = *self.progress.wanted.borrow();
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        let outcome = self.read_again(&dirty).await;
        if outcome.is_err() {
            let mut again = lock(&self.dirty);
            again.everything |= dirty.everything;
            again.roles |= dirty.roles;
            again.apis.extend(dirty.apis);
            again.endpoints.extend(dirty.endpoints);
        }
        outcome.map(|()| number)
    }

    /// The same, however long it takes.
    pub async fn read_at_last(&mut self) -> u64 {
        loop {
            match self.read().await {
                Ok(number) => return number,
                Err(error) => tracing::warn!(%error, "stored definitions can't be read; what is known is served on"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Names of the stored roles, for APIs to refer to.
    pub fn roles(&self) -> &BTreeSet<String> {
        &self.roles
    }

    async fn read_again(&mut self, dirty: &Dirty) -> Result<(), StoreError> {
        if dirty.everything || dirty.roles {
            let roles = self.store.all(Collection::Roles).await?;
            self.roles = roles.iter().filter_map(|role| text(role, "role_name").map(str::to_owned)).collect();
        }
        if dirty.everything {
            return self.read_apis().await;
        }
        let mut apis = dirty.apis.clone();
        for id in &dirty.endpoints {
            apis.extend(self.apis_of_endpoint(id).await?);
        }
        for (name, version) in &apis {
            let read = match self.store.find(Collection::Apis, &[name, version]).await? {
                None => None,
                Some(api) => {
                    let mut listing = Listing::with("api_name", name.as_str());
                    listing.equal.push(("api_version", version.as_str().into()));
                    let endpoints = self.store.list(Collection::Endpoints, &listing).await?.0;
                    let mut validations = Vec::new();
                    for id in endpoints.iter().filter_map(|endpoint| endpoint.get_str("endpoint_id").ok()) {
                        validations.extend(self.store.find(Collection::EndpointValidations, &[id]).await?);
                    }
                    Some(object(&api, &endpoints, &validations))
                }
            };
            let key = (name.clone(), version.clone());
            match read {
                Some(object) => drop(self.apis.insert(key, object)),
                None => drop(self.apis.remove(&key)),
            }
        }
        Ok(())
    }

    /// Reads all APIs, whatever changed.
    async fn read_apis(&mut self) -> Result<(), StoreError> {
        let mut endpoints: BTreeMap<Key, Vec<Arc<Document>>> = BTreeMap::new();
        for endpoint in self.store.all(Collection::Endpoints).await? {
            endpoints.entry(key(&endpoint)).or_default().push(endpoint);
        }
        let validations = self.store.all(Collection::EndpointValidations).await?;
        let apis = self.store.all(Collection::Apis).await?;
        self.apis = objects(&apis, &endpoints, &validations);
        Ok(())
    }

    /// The APIs that have an endpoint of this id: one, as a rule, but nothing keeps an id from being stored twice.
    async fn apis_of_endpoint(&self, id: &str) -> Result<BTreeSet<Key>, StoreError> {
        let listing = Listing { members: Some(&["api_name", "api_version"]), ..Listing::with("endpoint_id", id) };
        let (found, _) = self.store.list(Collection::Endpoints, &listing).await?;
        Ok(found.iter().map(|endpoint| key(endpoint)).collect())
    }

    /// What a source defines and what is stored, together.
    pub fn merged(&self, source: &Definitions) -> Definitions {
        let mut all = source.clone();
        for ((name, version), object) in &self.apis {
            match object {
                Ok(object) => drop(all.apis.insert(id(name, version), object.clone())),
                Err(rejection) => all.unreadable.push(rejection.clone()),
            }
        }
        all
    }

    /// What was read under this number is served now.
    pub fn served(&self, number: u64) {
        self.progress.served.send_replace(number);
    }
}

fn id(name: &str, version: &str) -> ObjectId {
    (NAMESPACE.to_owned(), format!("{name}/{version}"))
}

fn key(document: &Document) -> Key {
    let text = |member| document.get_str(member).unwrap_or_default().to_owned();
    (text("api_name"), text("api_version"))
}

/// Whether an object stands for stored documents.
pub fn is_stored(meta: &ObjectMeta) -> bool {
    meta.namespace.as_deref() == Some(NAMESPACE)
}

/// The spec that a stored API and its endpoints are, and what of them has no place in one.
pub fn spec(
    api: &Document,
    endpoints: &[Arc<Document>],
    validations: &[Arc<Document>],
) -> (DoormanApiSpec, Vec<Misfit>) {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| plain_document(endpoint)).collect();
    let validations = by_endpoint(validations);
    let validation = |id: &str| validations.get(id).map(|found| plain_document(found));
    fields::spec(&plain_document(api), &endpoints, validation)
}

/// What endpoints demand of bodies, by their ids.
fn by_endpoint(validations: &[Arc<Document>]) -> HashMap<&str, &Arc<Document>> {
    validations.iter().filter_map(|one| Some((text(one, "endpoint_id")?, one))).collect()
}

/// The objects that stored APIs are, given the endpoints of each and what any endpoints demand of bodies.
fn objects(
    apis: &[Arc<Document>],
    endpoints: &BTreeMap<Key, Vec<Arc<Document>>>,
    validations: &[Arc<Document>],
) -> BTreeMap<Key, Result<Arc<DoormanApi>, Rejection>> {
    let validations = by_endpoint(validations);
    let found = |endpoint: &Arc<Document>| Some(Arc::clone(validations.get(text(endpoint, "endpoint_id")?)?));
    let whole = |api: &Arc<Document>| {
        let own: &[Arc<Document>] = endpoints.get(&key(api)).map_or(&[], Vec::as_slice);
        let demanded: Vec<_> = own.iter().filter_map(found).collect();
        (key(api), object(api, own, &demanded))
    };
    apis.iter().map(whole).collect()
}

/// The object that a stored API and its endpoints are. What has no place in an object is of no use to traffic.
fn object(
    api: &Document,
    endpoints: &[Arc<Document>],
    validations: &[Arc<Document>],
) -> Result<Arc<DoormanApi>, Rejection> {
    let (name, version) = key(api);
    let id = id(&name, &version);
    let (spec, misfits) = served_spec(api, endpoints, validations);
    if let Some(misfit) = misfits.first() {
        return Err(Rejection {
            kind: "DoormanApi".into(),
            namespace: id.0,
            name: id.1,
            reason: "Unreadable".into(),
            message: misfit.to_string(),
        });
    }
    let mut hasher = DefaultHasher::new();
    serde_json::json!(spec).to_string().hash(&mut hasher);
    // There is no API server to count generations: the content stands for it.
    let generation = i64::try_from(hasher.finish() >> 1).unwrap_or_default();
    let metadata = ObjectMeta {
        uid: Some(format!("DoormanApi/{}/{}", id.0, id.1)),
        name: Some(id.1),
        namespace: Some(id.0),
        generation: Some(generation),
        ..ObjectMeta::default()
    };
    Ok(Arc::new(DoormanApi { metadata, spec, status: None }))
}

/// The spec by which an API is served that is stored so, and what of it is not of the kind that it must be.
fn served_spec(
    api: &Document,
    endpoints: &[Arc<Document>],
    validations: &[Arc<Document>],
) -> (DoormanApiSpec, Vec<Misfit>) {
    let (mut spec, mut misfits) = spec(api, endpoints, validations);
    misfits.retain(|misfit| matches!(misfit, Misfit::Kind { .. }));
    // Members that this version does not act on; existing databases are full of them.
    (spec.soap, spec.graphql, spec.grpc) = (None, None, None);
    // The stored type is a label, and endpoints may have servers of their own.
    if spec.servers.as_ref().is_none_or(Vec::is_empty) {
        spec.protocol = Protocol::REST;
    }
    let of_endpoints = spec.endpoints.iter_mut().flatten().map(|endpoint| &mut endpoint.servers);
    for server in of_endpoints.chain([&mut spec.servers]).flatten().flatten() {
        if let Cow::Owned(url) = server_url(server) {
            *server = url;
        }
    }
    leave_out_repeated(&mut spec);
    (spec, misfits)
}

/// Of endpoints that answer the same calls the first is called: existing databases have such, and processes may store two
/// at once.
fn leave_out_repeated(spec: &mut DoormanApiSpec) {
    let mut seen = HashSet::new();
    let calls = |one: &EndpointSpec| {
        let path = PathTemplate::parse(one.client_uri.as_ref().unwrap_or(&one.uri)).ok()?;
        Some((one.method, path.shape()))
    };
    let (name, version) = (&spec.name, &spec.version);
    if let Some(endpoints) = &mut spec.endpoints {
        endpoints.retain(|one| {
            let is_first = calls(one).is_none_or(|calls| seen.insert(calls));
            if !is_first {
                let (method, uri) = (one.method.as_str(), &one.uri);
                tracing::warn!(name, version, method, uri, "an endpoint is left out: another one answers its calls");
            }
            is_first
        });
    }
}

/// The URL that a stored server is called at: without a scheme it speaks HTTP, and the schemes of gRPC stand for what is
/// below it.
pub fn server_url(stored: &str) -> Cow<'_, str> {
    let of_grpc = [("grpc://", "http://"), ("grpcs://", "https://")];
    let meant = of_grpc.iter().find_map(|(from, to)| Some(format!("{to}{}", stored.strip_prefix(from)?)));
    let meant = meant.or_else(|| (!stored.contains("://")).then(|| format!("http://{stored}")));
    meant.map_or(Cow::Borrowed(stored), Cow::Owned)
}

/// Why an API could not be served that is stored so, with these endpoints; what is not there yet, as roles, is no reason.
pub fn problems(api: &Document, endpoints: &[Arc<Document>]) -> Vec<FieldError> {
    let (spec, misfits) = served_spec(api, endpoints, &[]);
    let misfits = misfits.iter().map(|misfit| FieldError::invalid(misfit.member(), misfit.to_string()));
    misfits.chain(fields::problems(&spec)).collect()
}

/// Whether changes that are to be stored can be applied.
///
/// # Errors
/// The first problem, with the member it is in.
pub fn check_transforms(api: &Document) -> Result<(), String> {
    fields::check_transforms(&plain_document(api))
}

/// Whether rules that are to be stored can be applied, enabled or not.
///
/// # Errors
/// The first problem, with the member it is in.
pub fn check_validation(validation: &Document) -> Result<(), String> {
    fields::check_validation(&plain_document(validation))
}

fn text<'a>(document: &'a Document, member: &str) -> Option<&'a str> {
    document.get_str(member).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, doc};

    use super::*;

    fn api() -> Document {
        doc! { "api_name": "orders", "api_version": "v1", "api_servers": ["http://orders:8080"], "api_public": true,
        "api_allowed_roles": [], "api_allowed_groups": ["ALL"], "api_type": Bson::Null, "active": true,
        "api_allowed_retry_count": 0, "api_credits_enabled": false, "api_cors_allow_origins": Bson::Null }
    }

    fn endpoint(method: &str, uri: &str) -> Document {
        doc! { "api_name": "orders", "api_version": "v1", "endpoint_method": method, "endpoint_uri": uri,
        "endpoint_id": uri, "client_uri": Bson::Null, "endpoint_servers": Bson::Null }
    }

    #[test]
    fn a_stored_api_is_the_object_that_a_manifest_would_be() {
        let endpoints = [endpoint("GET", "/items/{id}"), endpoint("OPTIONS", "/items"), endpoint("post", "items")];
        let object = object(&api(), &endpoints.map(Arc::new), &[]).unwrap();
        let parsed = doorman_crds::api::parse(&object.spec).unwrap();
        assert_eq!(parsed.key.to_string(), "orders/v1");
        assert!(!parsed.needs_identity && parsed.active);
        assert_eq!(parsed.endpoints.len(), 2, "what is never proxied is left out");
        assert_eq!(parsed.access.groups, Some(vec!["ALL".to_owned()]));
        let again = super::object(&api(), &[Arc::new(endpoint("GET", "/items"))], &[]).unwrap();
        assert_ne!(again.metadata.generation, object.metadata.generation);
    }

    #[test]
    fn stored_changes_and_rules_act_as_those_of_a_manifest() {
        let section =
            doc! { "headers": { "add": { "X-N": 1 } }, "status_map": { "500": "502" }, "query": { "remove": ["q"] } };
        let mut stored = api();
        stored.insert(
            "api_request_transform",
            doc! { "request": section.clone(), "response": { "body": { "wrap": "no" } } },
        );
        stored.insert("api_response_transform", section);
        stored.insert("api_response_envelope", true);
        let rule = doc! { "required": true, "type": "object", "pattern": Bson::Null, "custom_validator": "x",
        "nested_schema": { "id": { "required": true, "type": "array", "array_items": { "required": true, "type": "string" } } } };
        let rules = doc! { "endpoint_id": "/items", "validation_enabled": true,
        "validation_schema": { "validation_schema": { "user": rule } } };
        let object = object(&stored, &[Arc::new(endpoint("POST", "/items"))], &[Arc::new(rules.clone())]).unwrap();
        let parsed = doorman_crds::api::parse(&object.spec).unwrap();
        assert!(parsed.envelope);
        let request = parsed.request_transform.unwrap();
        assert_eq!((request.headers.add.len(), request.query.remove.len(), request.body), (1, 1, None));
        assert_eq!(parsed.response_transform.unwrap().statuses[0].1, 502);
        let validation = parsed.endpoints[0].validation.as_ref().unwrap();
        let (_, rule) = validation.rules().next().unwrap();
        assert!(rule.members[0].1.items.as_ref().unwrap().required);
        assert_eq!((check_transforms(&stored), check_validation(&rules)), (Ok(()), Ok(())));
    }

    #[test]
    fn changes_and_rules_that_can_not_be_applied_are_named() {
        for (member, section, wanted) in [
            (
                "api_request_transform",
                doc! { "headers": { "add": { "Host": "x" } } },
                "api_request_transform.headers.add[Host]: ",
            ),
            (
                "api_request_transform",
                doc! { "request": { "headers": { "remove": "x" } } },
                "api_request_transform.headers.remove: ",
            ),
            ("api_response_transform", doc! { "status_map": { "x": 1 } }, "api_response_transform.status_map[x]: "),
        ] {
            let error = check_transforms(&doc! { member: section }).unwrap_err();
            assert!(error.starts_with(wanted), "{error}");
        }
        for ignored in [doc! { "odd": 1 }, doc! { "request": { "status_map": { "x": 1 } } }, doc! { "response": 1 }] {
            assert_eq!(check_transforms(&doc! { "api_request_transform": ignored }), Ok(()));
        }
        let inner = doc! { "required": true, "type": "string", "pattern": "(" };
        let rules = doc! { "a": { "required": true, "type": "array", "array_items": inner } };
        let error = check_validation(&doc! { "validation_schema": { "validation_schema": rules } }).unwrap_err();
        assert!(error.starts_with("validation_schema.rules[a].array_items.pattern: "), "{error}");
    }

    #[test]
    fn of_stored_endpoints_that_answer_the_same_calls_one_is_served() {
        let endpoints = ["/a/{x}", "/a/{y}", "/b", "/a/{x}/c"].map(|uri| Arc::new(endpoint("GET", uri)));
        let spec = object(&api(), &endpoints, &[]).unwrap().spec.clone();
        let uris: Vec<_> = spec.endpoints.iter().flatten().map(|one| &*one.uri).collect();
        assert_eq!(uris, ["/a/{x}", "/b", "/a/{x}/c"]);
        assert_eq!(problems(&api(), &endpoints), []);
    }

    #[test]
    fn a_stored_api_of_no_use_is_named() {
        let mut broken = api();
        broken.insert("api_ip_mode", "whitelist");
        broken.insert("api_cors_allow_methods", vec!["GET"]);
        let fine = object(&broken, &[], &[]).unwrap();
        assert!(doorman_crds::api::parse(&fine.spec).is_err() || fine.spec.cors.is_some());
        let no_uri = doc! { "endpoint_method": "GET" };
        let rejection = object(&api(), &[Arc::new(no_uri)], &[]).unwrap_err();
        assert_eq!((&*rejection.name, &*rejection.reason), ("orders/v1", "Unreadable"));
        assert!(rejection.message.contains("endpoints[0]"), "{rejection:?}");
    }

    #[tokio::test]
    async fn a_change_is_served_when_it_was_read() {
        let store = Arc::new(Store::in_memory());
        let mut stored = Stored::new(store.clone());
        let number = stored.read().await.unwrap();
        stored.served(number);
        let progress = stored.progress();
        assert!(progress.is_served().await);

        store.insert(Collection::Apis, api()).await.unwrap();
        store.insert(Collection::Endpoints, endpoint("GET", "/items")).await.unwrap();
        stored.changed().await;
        assert!(stored.merged(&Definitions::default()).apis.is_empty());
        let number = stored.read_at_last().await;
        let merged = stored.merged(&Definitions::default());
        let (id, object) = merged.apis.first_key_value().unwrap();
        assert_eq!((&*id.1, object.spec.endpoints.as_ref().unwrap().len()), ("orders/v1", 1));
        let (waiting, serving) = (progress.is_served(), async { stored.served(number) });
        assert!(futures::join!(waiting, serving).0);

        store.remove(Collection::Apis, &["orders", "v1"]).await.unwrap();
        stored.read().await.unwrap();
        assert!(stored.merged(&Definitions::default()).apis.is_empty());
    }

    #[tokio::test]
    async fn what_an_endpoint_demands_makes_only_its_own_api_be_read_again() {
        let store = Arc::new(Store::in_memory());
        for name in ["orders", "payments"] {
            for (collection, mut document) in
                [(Collection::Apis, api()), (Collection::Endpoints, endpoint("GET", "/items"))]
            {
                document.extend(doc! { "api_name": name, "api_id": name, "endpoint_id": name });
                store.insert(collection, document).await.unwrap();
            }
        }
        let demands = |id: &str| {
            doc! { "endpoint_id": id, "validation_enabled": true,
            "validation_schema": { "validation_schema": { "a": { "required": true, "type": "string" } } } }
        };
        store.insert(Collection::EndpointValidations, demands("payments")).await.unwrap();
        let mut stored = Stored::new(store.clone());
        stored.read().await.unwrap();
        let of = |stored: &Stored, name: &str| stored.merged(&Definitions::default()).apis[&id(name, "v1")].clone();
        let demanded = |api: &DoormanApi| api.spec.endpoints.as_ref().unwrap()[0].validation.is_some();
        let payments = of(&stored, "payments");
        assert!(demanded(&payments) && !demanded(&of(&stored, "orders")));

        store.insert(Collection::EndpointValidations, demands("nobody's")).await.unwrap();
        store.insert(Collection::EndpointValidations, demands("orders")).await.unwrap();
        stored.read().await.unwrap();
        assert!(demanded(&of(&stored, "orders")));
        store.remove(Collection::EndpointValidations, &["orders"]).await.unwrap();
        stored.read().await.unwrap();
        assert!(!demanded(&of(&stored, "orders")), "it is noted though it is gone");
        assert!(Arc::ptr_eq(&payments, &of(&stored, "payments")), "the other was left alone");
    }
}
