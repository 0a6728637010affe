//! What of an import or a rollback goes to objects of the cluster.
//!
//! In: changes of APIs with their endpoints, and of roles. Out: they are served. What always holds: the API server is
//! asked about all of them before the first is made.

use std::collections::BTreeMap;

use doorman_crds::{
    DoormanApi, DoormanApiSpec, DoormanRole, DoormanRoleSpec,
    api::{ApiKey, EndpointSpec},
};
use http::StatusCode;
use mongodb::bson::Document;
use serde_json::Value;

use super::{Key, Platform, Refusal};
use crate::{
    definitions::{
        Origin,
        fields::{self, Members},
        writer::Writer,
    },
    platform::{
        definitions::{check_object, must_fit, not_written, unfit, until_served, write_object},
        known, roles,
    },
    problem::Problem,
    store::{Role, plain_document},
};

/// What becomes of the object of an API.
pub(super) enum ApiChange {
    /// Members of it and of endpoints are set.
    Merge { api: Option<Members>, endpoints: Vec<Members> },
    /// It is as these say and has no other endpoints.
    Whole { api: Members, endpoints: Vec<Members> },
    /// It is deleted.
    Gone,
}

struct ApiWrite<'a> {
    writer: &'a Writer,
    object: String,
    change: ApiChange,
    /// What an older database holds of it.
    stored: Option<DoormanApiSpec>,
}

struct RoleWrite<'a> {
    writer: &'a Writer,
    object: String,
    /// `None`: it is deleted.
    spec: Option<DoormanRoleSpec>,
}

/// Objects to write.
#[derive(Default)]
pub(super) struct Objects<'a> {
    apis: BTreeMap<ApiKey, ApiWrite<'a>>,
    roles: BTreeMap<String, RoleWrite<'a>>,
}

/// The API that a document of one, or of an endpoint, is of.
pub(super) fn api_of(document: &Document) -> ApiKey {
    let text = |member| document.get_str(member).unwrap_or_default().to_owned();
    ApiKey { name: text("api_name"), version: text("api_version") }
}

/// Sets members of the endpoint that a document is of, which is added where there is none.
fn put_endpoint(endpoints: &mut Vec<EndpointSpec>, document: &Members) -> Result<(), Refusal> {
    let text = |member| document.get(member).and_then(Value::as_str).unwrap_or_default();
    let (method, uri) = (text("endpoint_method"), text("endpoint_uri"));
    let index = endpoints.iter().position(|one| known::is_at(one, method, uri)).unwrap_or(endpoints.len());
    if index == endpoints.len() {
        let method = fields::method(method).map_err(|misfit| unfit(&misfit))?;
        endpoints.push(fields::blank_endpoint(method, uri));
    }
    endpoints.get_mut(index).map_or(Ok(()), |endpoint| must_fit(&fields::set_endpoint(endpoint, document)))
}

impl ApiWrite<'_> {
    fn make(&self, key: &ApiKey, found: Option<&DoormanApiSpec>) -> Result<Option<DoormanApiSpec>, Refusal> {
        let new = || fields::blank(&key.name, &key.version);
        let before = found.or(self.stored.as_ref()).cloned();
        let mut spec = match (&self.change, before) {
            (ApiChange::Gone, _) => return Ok(None),
            (_, Some(spec)) => spec,
            (ApiChange::Merge { api: None, .. }, None) => {
                let message = format!("Validation Error: endpoints of API {key}, which does not exist");
                return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "VAL001", message).into());
            }
            (_, None) => new(),
        };
        let had = spec.endpoints.take().unwrap_or_default();
        let endpoints = match &self.change {
            ApiChange::Gone => had,
            ApiChange::Merge { api, endpoints } => {
                must_fit(&api.as_ref().map(|api| fields::set(&mut spec, api)).unwrap_or_default())?;
                let mut merged = had;
                endpoints.iter().try_for_each(|document| put_endpoint(&mut merged, document))?;
                merged
            }
            ApiChange::Whole { api, endpoints } => {
                must_fit(&fields::reset(&mut spec, api))?;
                let mut whole = Vec::new();
                endpoints.iter().try_for_each(|document| put_endpoint(&mut whole, document))?;
                for endpoint in &mut whole {
                    // No document of the five kinds tells what it demands.
                    let same = |one: &&EndpointSpec| one.method == endpoint.method && one.uri == endpoint.uri;
                    endpoint.validation = had.iter().find(same).and_then(|one| one.validation.clone());
                }
                whole
            }
        };
        spec.endpoints = Some(endpoints).filter(|endpoints| !endpoints.is_empty());
        Ok(Some(spec))
    }
}

impl<'a> Objects<'a> {
    /// Adds members to set, of an API or of one of its endpoints.
    pub(super) async fn merge(
        &mut self,
        platform: &Platform,
        (writer, object): (&'a Writer, String),
        document: &Document,
        is_endpoint: bool,
    ) -> Result<(), Refusal> {
        let key = api_of(document);
        if !self.apis.contains_key(&key) {
            let is_defined = known::definition(platform, &key).is_some();
            let stored = if is_defined { None } else { known::stored_spec(platform, &key).await? };
            let change = ApiChange::Merge { api: None, endpoints: Vec::new() };
            self.apis.insert(key.clone(), ApiWrite { writer, object, change, stored });
        }
        if let Some(ApiWrite { change: ApiChange::Merge { api, endpoints }, .. }) = self.apis.get_mut(&key) {
            let members = plain_document(document);
            if is_endpoint { endpoints.push(members) } else { api.get_or_insert_default().extend(members) }
        }
        Ok(())
    }

    pub(super) fn api(&mut self, (writer, object): (&'a Writer, String), key: ApiKey, change: ApiChange) {
        self.apis.insert(key, ApiWrite { writer, object, change, stored: None });
    }

    /// Adds a role as it will be; `None`: it goes.
    pub(super) fn role(
        &mut self,
        (writer, object): (&'a Writer, String),
        key: &Key,
        document: Option<&Document>,
    ) -> Result<(), Refusal> {
        let spec = document.and_then(Role::from_document).map(|role| roles::valid(roles::spec(&role))).transpose()?;
        self.roles.insert(key.concat(), RoleWrite { writer, object, spec });
        Ok(())
    }

    /// Asks the API server what it would say to all of it.
    pub(super) async fn check(&self) -> Result<(), Refusal> {
        for (key, api) in &self.apis {
            let make = |found: Option<&DoormanApiSpec>| api.make(key, found);
            check_object::<DoormanApi>(api.writer, &api.object, &known::called(key), make).await?;
        }
        for (name, role) in &self.roles {
            let make = |_: Option<&DoormanRoleSpec>| Ok(role.spec.clone());
            check_object::<DoormanRole>(role.writer, &role.object, &roles::called(name), make).await?;
        }
        Ok(())
    }

    /// Writes all of it and waits until it is served.
    pub(super) async fn write(&self, platform: &Platform) -> Result<(), Refusal> {
        let mut written: Vec<(&ApiKey, &ApiWrite<'_>, Option<Origin>)> = Vec::new();
        for (key, api) in &self.apis {
            let what = known::called(key);
            let origin = if matches!(api.change, ApiChange::Gone) {
                let deleted = api.writer.delete::<DoormanApi>(&api.object).await;
                deleted.map_err(|error| not_written(&what, error))?
            } else {
                let make = |found: Option<&DoormanApiSpec>| api.make(key, found);
                write_object::<DoormanApi>(api.writer, &api.object, &what, make).await?
            };
            written.push((key, api, origin));
        }
        let mut roles_written: Vec<(&str, &RoleWrite<'_>, Option<Origin>)> = Vec::new();
        for (name, role) in &self.roles {
            let what = roles::called(name);
            let origin = if role.spec.is_none() {
                let deleted = role.writer.delete::<DoormanRole>(&role.object).await;
                deleted.map_err(|error| not_written(&what, error))?
            } else {
                let make = |_: Option<&DoormanRoleSpec>| Ok(role.spec.clone());
                write_object::<DoormanRole>(role.writer, &role.object, &what, make).await?
            };
            roles_written.push((name, role, origin));
        }
        for (key, api, origin) in &written {
            let Some(origin) = origin else { continue };
            let is_served = || match api.change {
                ApiChange::Gone => known::origin(platform, key).is_none_or(|served| served.uid != origin.uid),
                ApiChange::Merge { .. } | ApiChange::Whole { .. } => platform.snapshot.load().knows(key, origin),
            };
            until_served(api.writer, &known::called(key), is_served).await?;
        }
        for (name, role, origin) in &roles_written {
            let Some(origin) = origin else { continue };
            let is_served = || match role.spec {
                None => roles::origin(platform, name).is_none_or(|served| served.uid != origin.uid),
                Some(_) => roles::is_served(platform, name, origin),
            };
            until_served(role.writer, &roles::called(name), is_served).await?;
        }
        Ok(())
    }
}
