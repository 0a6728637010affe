//! What upstreams say of themselves: `/platform/api/{api_name}/{api_version}/openapi` and its like (reference: platform
//! API 8.1).

use std::sync::Arc;

use doorman_crds::api::ApiKey;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use super::{
    Platform,
    answer::{Refusal, refused},
    endpoints::{Clash, NewEndpoint, add_all},
    known::{self, Known},
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
/// What failed is our own.
const UNEXPECTED: &str = "An unexpected error occurred";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .merge(openapi::routes())
        .merge(wsdl::routes())
        .merge(graphql::routes())
        .merge(grpc::routes())
}

/// Which API.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Key {
    /// The API's name.
    api_name: String,
    /// Its version.
    api_version: String,
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
    async fn find(platform: &Platform, key: Key) -> Result<Self, Refusal> {
        Self::find_any(platform, key).await?.ok_or_else(unknown)
    }

    async fn find_any(platform: &Platform, Key { api_name, api_version }: Key) -> Result<Option<Self>, Refusal> {
        let key = ApiKey { name: api_name, version: api_version };
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
        let message: String = format!("The API is defined but can't be served: {reason}").chars().take(255).collect();
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "GTW503", message).into())
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
            let cut = |text: &str| text.chars().take(255).collect::<String>();
            self.skipped.push(Skipped {
                endpoint_method: cut(method),
                endpoint_uri: cut(uri),
                reason: cut(&reason.into()),
            });
        }
    }
}

/// Text as stored names are: no longer than a field has room for, and on one line.
fn in_one_line(text: &str) -> String {
    const MOST: usize = 255;
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    plain.trim().chars().take(MOST).collect()
}

/// Adds to an API what a document describes and the API does not have.
async fn import(platform: &Platform, key: &ApiKey, described: &[Described<'_>]) -> Result<Imported, Refusal> {
    const MOST_CHARACTERS: usize = 255;
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
