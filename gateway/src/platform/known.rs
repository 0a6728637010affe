//! APIs that there are, whatever defines them: objects of the cluster, manifests of the folder, documents.
//!
//! Of two of one name and version the defined one counts. What always holds: all that REST shows of APIs, endpoints and
//! validations comes from here, and all that it writes to their objects goes through here.

use std::{collections::BTreeMap, sync::Arc};

use doorman_crds::{
    DoormanApi, DoormanApiSpec,
    api::{ApiKey, EndpointSpec},
};
use mongodb::bson::Document;
use uuid::Uuid;

use super::{
    Platform,
    answer::Refusal,
    definitions::{self, Place, must_be_servable, must_fit, until_served, write_object},
    request::Page,
};
use crate::{
    definitions::{
        Origin, documents,
        fields::{self, Members, problems},
        writer::{Writer, api_object_name},
    },
    snapshot::Definition,
    store::{Collection, Listing, StoreError, plain_document},
};

/// An API that there is.
pub(super) enum Known {
    Defined(Definition),
    Stored(Arc<Document>),
}

/// What an API of this name and version is called in messages.
pub(super) fn called(key: &ApiKey) -> String {
    format!("API {key}")
}

/// A document with the word of who defines it.
fn with_owner(mut shown: Members, definition: &Definition) -> Members {
    shown.insert("managed_by".into(), definition.origin().owner.to_string().into());
    shown
}

/// An endpoint of a defined API, as clients read it.
fn shown_endpoint(definition: &Definition, endpoint: &EndpointSpec) -> Members {
    with_owner(fields::endpoint(&definition.object.spec, definition.uid(), endpoint), definition)
}

/// The endpoints of a defined API, in the order of the stored ones.
fn endpoints_of(definition: &Definition) -> Vec<&EndpointSpec> {
    let mut endpoints: Vec<_> = definition.object.spec.endpoints.iter().flatten().collect();
    endpoints.sort_by_key(|endpoint| (endpoint.method.as_str(), &*endpoint.uri));
    endpoints
}

/// What clients call.
pub(super) fn key(definition: &Definition) -> ApiKey {
    let spec = &definition.object.spec;
    ApiKey { name: spec.name.clone(), version: spec.version.clone() }
}

/// What defines this API, if it is defined.
pub(super) fn definition(platform: &Platform, key: &ApiKey) -> Option<Definition> {
    platform.snapshot.load().definition(&key.name, &key.version).cloned()
}

/// The object that defines this API, as it is served.
pub(super) fn origin(platform: &Platform, key: &ApiKey) -> Option<Origin> {
    definition(platform, key).map(|definition| definition.origin())
}

/// Where this API is written, or why it is not.
pub(super) fn place<'a>(platform: &'a Platform, key: &ApiKey) -> Result<Place<'a>, Refusal> {
    let new_name = || api_object_name(&key.name, &key.version);
    definitions::place::<DoormanApi>(platform, &called(key), origin(platform, key).as_ref(), new_name)
}

impl Known {
    pub(super) async fn find(platform: &Platform, key: &ApiKey) -> Result<Option<Self>, StoreError> {
        if let Some(definition) = definition(platform, key) {
            return Ok(Some(Self::Defined(definition)));
        }
        let found = platform.identity.store().find(Collection::Apis, &[&key.name, &key.version]).await?;
        Ok(found.map(Self::Stored))
    }

    /// A page of all, and how many there are.
    pub(super) async fn page(platform: &Platform, page: Page) -> Result<(Vec<Self>, u64), StoreError> {
        let defined = defined(platform);
        let store = platform.identity.store();
        if defined.is_empty() {
            let (found, total) = store.list(Collection::Apis, &page.listing()).await?;
            return Ok((found.into_iter().map(Self::Stored).collect(), total));
        }
        let mut all: BTreeMap<Vec<String>, Self> = BTreeMap::new();
        for stored in store.all(Collection::Apis).await? {
            if let Some(key) = Collection::Apis.key_of(&stored) {
                all.insert(key, Self::Stored(stored));
            }
        }
        let place = |one: &Definition| vec![one.object.spec.name.clone(), one.object.spec.version.clone()];
        all.extend(defined.into_iter().map(|one| (place(&one), Self::Defined(one))));
        let total = all.len() as u64;
        Ok((page.cut(all.into_values()), total))
    }

    /// The API as clients read it.
    pub(super) fn shown(&self) -> Members {
        match self {
            Self::Defined(definition) => with_owner(fields::api(&definition.object.spec, definition.uid()), definition),
            Self::Stored(stored) => plain_document(stored),
        }
    }
}

/// All that define an API.
pub(super) fn defined(platform: &Platform) -> Vec<Definition> {
    platform.snapshot.load().definitions().cloned().collect()
}

/// All endpoints of defined APIs, as clients read them.
pub(super) fn defined_endpoints(definition: &Definition) -> Vec<Members> {
    endpoints_of(definition).into_iter().map(|endpoint| shown_endpoint(definition, endpoint)).collect()
}

async fn stored_endpoints(platform: &Platform, key: &ApiKey) -> Result<Vec<Arc<Document>>, StoreError> {
    let mut listing = Listing::with("api_name", key.name.as_str());
    listing.equal.push(("api_version", key.version.as_str().into()));
    platform.identity.store().list(Collection::Endpoints, &listing).await.map(|(found, _)| found)
}

/// Every endpoint of an API.
pub(super) async fn endpoints(platform: &Platform, key: &ApiKey) -> Result<Vec<Members>, StoreError> {
    if let Some(definition) = definition(platform, key) {
        return Ok(defined_endpoints(&definition));
    }
    let stored = stored_endpoints(platform, key).await?;
    Ok(stored.iter().map(|endpoint| plain_document(endpoint)).collect())
}

/// One endpoint of an API.
pub(super) async fn endpoint(
    platform: &Platform,
    key: &ApiKey,
    (method, uri): (&str, &str),
) -> Result<Option<Members>, StoreError> {
    if let Some(definition) = definition(platform, key) {
        let all = definition.object.spec.endpoints.iter().flatten();
        let found = all.into_iter().find(|one| is_at(one, method, uri));
        return Ok(found.map(|endpoint| shown_endpoint(&definition, endpoint)));
    }
    Ok(stored_endpoint(platform, key, (method, uri)).await?.map(|stored| plain_document(&stored)))
}

/// One stored endpoint of an API. Its path is found with and without the slashes at its ends: no two differ in these only.
pub(super) async fn stored_endpoint(
    platform: &Platform,
    key: &ApiKey,
    (method, uri): (&str, &str),
) -> Result<Option<Arc<Document>>, StoreError> {
    let bare = uri.trim_matches('/');
    for form in [uri, &format!("/{bare}"), &format!("/{bare}/"), bare] {
        let name = [method, &key.name, &key.version, form];
        if let Some(found) = platform.identity.store().find(Collection::Endpoints, &name).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Is this what the endpoint is found by?
pub(super) fn is_at(endpoint: &EndpointSpec, method: &str, uri: &str) -> bool {
    endpoint.method.as_str() == method && endpoint.uri.trim_matches('/') == uri.trim_matches('/')
}

/// An endpoint found by its id.
pub(super) struct Located {
    pub(super) api: ApiKey,
    pub(super) method: String,
    pub(super) uri: String,
    /// What defines it, if it is defined.
    pub(super) defined: Option<(Definition, EndpointSpec)>,
}

impl Located {
    pub(super) async fn find(platform: &Platform, id: &str) -> Result<Option<Self>, StoreError> {
        if let Some(located) = Self::defined(platform, id) {
            return Ok(Some(located));
        }
        let listing = Listing { limit: Some(1), ..Listing::with("endpoint_id", id) };
        let (found, _) = platform.identity.store().list(Collection::Endpoints, &listing).await?;
        Ok(found.first().map(|stored| {
            let text = |member| stored.get_str(member).unwrap_or_default().to_owned();
            let api = ApiKey { name: text("api_name"), version: text("api_version") };
            Self { api, method: text("endpoint_method").to_ascii_uppercase(), uri: text("endpoint_uri"), defined: None }
        }))
    }

    fn defined(platform: &Platform, id: &str) -> Option<Self> {
        let id = Uuid::parse_str(id).ok()?;
        let snapshot = platform.snapshot.load();
        let mut may_be = snapshot.definitions().filter(|one| fields::may_be_of(one.uid(), id));
        may_be.find_map(|definition| {
            let spec = &definition.object.spec;
            let is_it = |one: &&EndpointSpec| fields::endpoint_id(definition.uid(), one) == id;
            let endpoint = spec.endpoints.iter().flatten().find(is_it)?;
            Some(Self {
                api: key(definition),
                method: endpoint.method.as_str().to_owned(),
                uri: endpoint.uri.clone(),
                defined: Some((definition.clone(), endpoint.clone())),
            })
        })
    }
}

/// What an older database holds of an API: the object that it becomes with its first change.
pub(super) async fn stored_spec(platform: &Platform, key: &ApiKey) -> Result<Option<DoormanApiSpec>, Refusal> {
    let store = platform.identity.store();
    let Some(api) = store.find(Collection::Apis, &[&key.name, &key.version]).await? else { return Ok(None) };
    let endpoints = stored_endpoints(platform, key).await?;
    let mut validations = Vec::new();
    for id in endpoints.iter().filter_map(|endpoint| endpoint.get_str("endpoint_id").ok()) {
        validations.extend(store.find(Collection::EndpointValidations, &[id]).await?);
    }
    let (spec, misfits) = documents::spec(&api, &endpoints, &validations);
    must_fit(&misfits)?;
    Ok(Some(spec))
}

/// Writes what `make` makes of the object of an API, and waits until it is known here. `false`: it was left as it is.
pub(super) async fn write(
    platform: &Platform,
    (writer, object): (&Writer, &str),
    key: &ApiKey,
    make: impl Fn(Option<&DoormanApiSpec>) -> Result<Option<DoormanApiSpec>, Refusal>,
) -> Result<bool, Refusal> {
    let make = |found: Option<&DoormanApiSpec>| {
        let made = make(found)?;
        if let Some(made) = &made {
            must_be_servable(|| found.map(problems).unwrap_or_default(), problems(made))?;
        }
        Ok(made)
    };
    let Some(written) = write_object::<DoormanApi>(writer, object, &called(key), make).await? else {
        return Ok(false);
    };
    until_served(writer, &called(key), || platform.snapshot.load().knows(key, &written)).await?;
    Ok(true)
}

/// Changes the object of an API; one that is only stored becomes an object. `change` tells whether it changed anything.
pub(super) async fn change(
    platform: &Platform,
    (writer, object): (&Writer, &str),
    key: &ApiKey,
    missing: impl Fn() -> Refusal,
    change: impl Fn(&mut DoormanApiSpec) -> Result<bool, Refusal>,
) -> Result<(), Refusal> {
    let is_defined = definition(platform, key).is_some();
    let stored = if is_defined { None } else { stored_spec(platform, key).await? };
    let make = |found: Option<&DoormanApiSpec>| {
        let mut spec = found.or(stored.as_ref()).cloned().ok_or_else(&missing)?;
        Ok(change(&mut spec)?.then_some(spec))
    };
    write(platform, (writer, object), key, make).await.map(drop)
}
