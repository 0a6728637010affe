//! What upstreams say of themselves: `/platform/api/{api_name}/{api_version}/openapi` and its like (reference: platform
//! API 8.1).

use std::sync::Arc;

use doorman_crds::api::ApiKey;
use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use super::{
    Platform,
    answer::{Refusal, refused},
    endpoints::{Clash, NewEndpoint, add_all},
    known::{self, Known},
    request::ApiPath,
    wire::Text,
};
use crate::{
    definitions::fields::{self, Members},
    discovery::{DiscoveryError, Document, Documents, Place},
    problem::Problem,
    snapshot::{CompiledApi, Entry},
};

mod graphql;
mod grpc;
mod openapi;
mod wsdl;

/// The caller lacks a permission.
const NO_DISCOVERY: (&str, &str) = ("AUTHZ001", "Not authorized");
/// Most characters of a stored name or path, and of a message.
const MOST_CHARACTERS: usize = 255;

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .merge(openapi::routes())
        .merge(wsdl::routes())
        .merge(graphql::routes())
        .merge(grpc::routes())
}

fn unknown() -> Refusal {
    refused(StatusCode::NOT_FOUND, "API001", "API not found")
}

/// An API whose upstream may be asked.
struct Asked {
    key: ApiKey,
    members: Members,
}

/// Why there is no document.
enum NoDocument {
    /// Nobody says where it is.
    NoPlace,
    /// It would be on the API's servers, of which there are none.
    NoServers,
    /// The API can't be served, nor may its upstream be asked.
    Unservable(Refusal),
    /// See the error.
    Failed(DiscoveryError),
}

impl NoDocument {
    /// The refusals that are alike for every kind of document; the others are the kind's own.
    fn refusal(self, broken_code: &'static str, own: impl FnOnce(Self) -> Refusal) -> Refusal {
        match self {
            Self::Unservable(refusal) => refusal,
            Self::Failed(DiscoveryError::Broken(_)) => broken(broken_code),
            other => own(other),
        }
    }
}

/// Something of our own failed.
fn broken(code: &'static str) -> Refusal {
    refused(StatusCode::INTERNAL_SERVER_ERROR, code, "An unexpected error occurred")
}

/// How new a document must be.
#[derive(Clone, Copy)]
enum Age {
    /// What is known will do.
    Known,
    /// As it is now.
    New,
}

impl Asked {
    /// The API of this name and version, as it is stored or defined.
    async fn find(platform: &Platform, key: ApiPath) -> Result<Self, Refusal> {
        Self::find_any(platform, key).await?.ok_or_else(unknown)
    }

    async fn find_any(platform: &Platform, key: ApiPath) -> Result<Option<Self>, Refusal> {
        let key = ApiKey::from(key);
        let found = Known::find(platform, &key).await?;
        Ok(found.map(|found| Self { key, members: found.shown() }))
    }

    /// A member that is text and not empty.
    fn text(&self, member: &str) -> Option<&str> {
        self.members.get(member).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// A document of the API's upstream, and whether it was known.
    async fn document<D: Document>(
        &self,
        platform: &Platform,
        documents: &Documents<D>,
        place: Option<Result<Place, String>>,
        age: Age,
    ) -> Result<(Arc<D>, bool), NoDocument> {
        let place = place.ok_or(NoDocument::NoPlace)?.map_err(|why| {
            tracing::warn!(api = %self.key, why, "no document of an upstream");
            NoDocument::Failed(DiscoveryError::Unfetched(why))
        })?;
        if matches!(place, Place::OnServers(_)) && !self.has_servers() {
            return Err(NoDocument::NoServers);
        }
        let api = self.served(platform).await.map_err(NoDocument::Unservable)?;
        let found = match age {
            Age::Known => documents.get(&api, &place).await,
            Age::New => documents.refresh(&api, &place).await.map(|document| (document, false)),
        };
        found.map_err(NoDocument::Failed)
    }

    fn has_servers(&self) -> bool {
        self.members.get("api_servers").and_then(Value::as_array).is_some_and(|servers| !servers.is_empty())
    }

    /// The API as it is served: its upstreams are called in the same way as for traffic, or not at all.
    async fn served(&self, platform: &Platform) -> Result<Arc<CompiledApi>, Refusal> {
        let find = || platform.snapshot.load().find(&self.key.name, &self.key.version).cloned();
        let mut found = find();
        if found.is_none() {
            // It may have been stored by another process just now.
            platform.until_served().await;
            found = find();
        }
        let reason = match found {
            Some(Entry::Served(api)) => return Ok(api),
            Some(Entry::Unservable(reason)) => reason,
            None => "it is not known to this process yet".into(),
        };
        let message = format!("The API is defined but can't be served: {reason}");
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "GTW503", cut(&message)).into())
    }
}

/// An endpoint that a document describes.
struct Described<'a> {
    method: &'a str,
    uri: &'a str,
    description: &'a str,
}

/// What a document describes and was not added.
#[derive(Debug, Serialize, ToSchema)]
struct Skipped {
    endpoint_method: String,
    endpoint_uri: String,
    /// Why not.
    reason: String,
}

/// What came of an import.
#[derive(Debug, Default)]
struct Imported {
    added: usize,
    /// How many were passed over, and the first of them.
    passed_over: usize,
    skipped: Vec<Skipped>,
}

impl Imported {
    /// Most that are told one by one.
    const MOST_TOLD: usize = 100;

    fn pass_over(&mut self, method: &str, uri: &str, reason: impl Into<String>) {
        self.passed_over += 1;
        if self.skipped.len() < Self::MOST_TOLD {
            self.skipped.push(Skipped {
                endpoint_method: cut(method),
                endpoint_uri: cut(uri),
                reason: cut(&reason.into()),
            });
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MOST_CHARACTERS).collect()
}

/// Text as stored names are: no longer than a field has room for, and on one line.
fn in_one_line(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    cut(plain.trim())
}

/// Adds to an API what a document describes and the API does not have.
async fn import(platform: &Platform, key: &ApiKey, described: &[Described<'_>]) -> Result<Imported, Refusal> {
    let mut imported = Imported::default();
    let mut new = Vec::new();
    for Described { method, uri, description } in described {
        if fields::method(method).is_err() {
            imported.pass_over(method, uri, "the gateway answers calls of this method itself");
            continue;
        }
        let uri = fields::slashed(uri);
        if uri.chars().count() > MOST_CHARACTERS {
            imported.pass_over(method, &uri, format!("the path has more than {MOST_CHARACTERS} characters"));
            continue;
        }
        let mut description = in_one_line(description);
        if description.is_empty() {
            description = in_one_line(&format!("{method} {uri}"));
        }
        new.push(NewEndpoint {
            api_name: Text(key.name.clone()),
            api_version: Text(key.version.clone()),
            endpoint_method: Text((*method).to_owned()),
            endpoint_uri: Text(uri),
            endpoint_description: Text(description),
            endpoint_servers: None,
            endpoint_server_weights: None,
            client_uri: None,
        });
    }
    let outcome = add_all(platform, key, &new, unknown, |_| Ok(())).await?;
    imported.added = outcome.added;
    for (place, clash) in &outcome.clashes {
        let Some(endpoint) = new.get(*place) else { continue };
        let reason = match clash {
            Clash::Exists | Clash::ClientUri => "the API has an endpoint for these calls",
            Clash::Unusable(why) => why,
        };
        imported.pass_over(&endpoint.endpoint_method.0, &endpoint.endpoint_uri.0, reason);
    }
    Ok(imported)
}

/// Refuses an import into an API that can't be changed here, before its upstream is asked.
fn must_be_ours(platform: &Platform, key: &ApiKey) -> Result<(), Refusal> {
    known::place(platform, key).map(drop)
}
