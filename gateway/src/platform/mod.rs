//! The management API under `/platform` (and `/api/caches`): an ordinary web application over the stores.
//!
//! In: a request with its [`crate::client::ClientAddress`] and [`crate::client::Scheme`] as extensions. Out: a response.
//! One module per area, each with its routes and handlers; what all routes have in common happens in [`enter`], in this
//! order: preflight, body limit, routing, envelope, CORS. What always holds: every path below `/platform` answers in
//! JSON, whoever asks and whatever is asked; only liveness, readiness and sign-in answer strangers with more than a
//! refusal. Headers that all of the gateway's responses have are added outside.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{Router, body::Body, extract::Request, response::IntoResponse, response::Response, routing::get};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use tokio::sync::{Notify, OnceCell, watch};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;

mod analytics;
mod answer;
mod apis;
mod audit;
mod authorization;
mod caches;
mod config;
mod cookies;
mod cors;
mod credits;
mod dashboard;
mod definitions;
mod discovery;
mod docs;
mod endpoints;
mod groups;
mod known;
mod logging;
mod memory;
mod monitor;
mod openapi;
mod quota;
mod rate_limits;
mod reload;
mod request;
mod roles;
mod routings;
mod security;
mod status;
mod subscriptions;
mod tiers;
mod tools;
mod users;
mod validations;
mod vault;
mod wire;

pub use security::SETTINGS as SECURITY_SETTINGS;

use crate::{
    accounting::Accounts,
    crypt::Sealer,
    definitions::documents::Progress,
    definitions::writer::Writing,
    discovery::Discovery,
    identity::Identity,
    persistence::Persistence,
    problem::Problem,
    settings::Settings,
    snapshot::Snapshot,
    store::{ADMIN, StoreError, User, outage::undisturbed},
    telemetry::{Telemetry, logs},
};

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct Platform {
    /// Settings of the process.
    pub settings: Arc<Settings>,
    /// Who callers are, and the stores.
    pub identity: Arc<Identity>,
    /// Encrypts and decrypts stored upstream keys.
    pub sealer: Arc<Sealer>,
    /// What calls cost and how often they may come.
    pub accounts: Arc<Accounts>,
    /// Dumps, and the security settings.
    pub persistence: Arc<Persistence>,
    /// Whether this process takes traffic: not while it starts, and no more once it drains.
    pub ready: watch::Receiver<bool>,
    /// What upstreams say of themselves.
    pub discovery: Arc<Discovery>,
    /// What is served.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// How far it has come behind the document store, where that holds definitions.
    pub progress: Option<Progress>,
    /// Where definitions are written.
    pub writing: Writing,
    /// Notified when someone who may wants the process to stop in an orderly way and to start again.
    pub restart: Arc<Notify>,
    /// Records and numbers of what went on.
    pub telemetry: Telemetry,
    /// Calls that may have begun to change something.
    pub changes: TaskTracker,
}

impl Platform {
    /// Waits until what was written is served by this process.
    async fn until_served(&self) {
        if let Some(progress) = &self.progress
            && !progress.is_served().await
        {
            tracing::warn!("what was written is stored, and not yet served");
        }
    }

    /// Is this the name of an administrators' role?
    async fn is_admin_role(&self, name: &str) -> Result<bool, StoreError> {
        self.identity.is_admin_role(name).await
    }

    /// Is this an administrator, whom only administrators may see or change?
    async fn is_admin_user(&self, user: &User) -> Result<bool, StoreError> {
        Ok(&*user.username == ADMIN || self.is_admin_role(&user.role).await?)
    }
}

/// Everything under `/platform`. Other paths get 404.
pub fn router(platform: Platform) -> Router {
    entrance(platform, Router::from(areas()))
}

fn areas() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .merge(authorization::routes())
        .merge(users::routes())
        .merge(roles::routes())
        .merge(groups::routes())
        .merge(apis::routes())
        .merge(discovery::routes())
        .merge(endpoints::routes())
        .merge(validations::routes())
        .merge(subscriptions::routes())
        .merge(routings::routes())
        .merge(credits::routes())
        .merge(tiers::routes())
        .merge(rate_limits::routes())
        .merge(quota::routes())
        .merge(vault::routes())
        .merge(config::routes())
        .merge(reload::routes())
        .merge(tools::routes())
        .merge(monitor::routes())
        .merge(security::routes())
        .merge(memory::routes())
        .merge(caches::routes())
        .merge(dashboard::routes())
        .merge(analytics::routes())
        .merge(logging::routes())
        .merge(status::routes())
}

/// The description of all routes (OpenAPI 3.1), as `/platform/openapi.json` serves it.
pub fn document() -> serde_json::Value {
    openapi::complete(areas().into_openapi())
}

/// Puts before some areas what all have in common.
fn entrance(platform: Platform, areas: Router<Platform>) -> Router {
    let routes = areas
        .route("/platform/openapi.json", get(described))
        .merge(docs::routes())
        .fallback(async || answer::detail(StatusCode::NOT_FOUND, "Not Found"))
        .method_not_allowed_fallback(async || answer::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"))
        .with_state(platform.clone())
        .route_layer(axum::middleware::from_fn(audit::audited));
    // A fallback sees requests before they are routed, a layer only afterwards.
    Router::new().fallback(move |request: Request| enter(platform.clone(), routes.clone(), request))
}

/// The description, made when it is first asked for: while it is made it takes megabytes.
async fn described() -> Response {
    static DOCUMENT: OnceCell<Bytes> = OnceCell::const_new();
    let make = async || tokio::task::spawn_blocking(|| crate::problem::json(&document())).await;
    match DOCUMENT.get_or_try_init(make).await {
        Ok(document) => ([(header::CONTENT_TYPE, "application/json")], document.clone()).into_response(),
        Err(error) => {
            tracing::error!(%error, "the description can't be made");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn enter(platform: Platform, routes: Router, mut request: Request) -> Response {
    let (settings, origin) = (&platform.settings, cors::origin(request.headers()));
    let network = &settings.network;
    if request.method() == Method::OPTIONS {
        return cors::preflight(network, request.headers());
    }
    if let Some(shorter) = without_trailing_slash(request.uri()) {
        *request.uri_mut() = shorter;
    }
    // Routes for GET don't answer HEAD. No route answers TRACE, so this gives 405 on all routes and 404 elsewhere.
    if request.method() == Method::HEAD {
        *request.method_mut() = Method::TRACE;
    }
    // The two routes below `/api` are in no envelope, and browsers may read only one of them (reference: platform API 1.5).
    let (may_be_wrapped, is_for_browsers) = match request.uri().path() {
        status::PATH => (false, false),
        caches::PATH => (false, true),
        _ => (true, true),
    };
    let mut response = match refused_body(&platform, &request) {
        Some(refusal) => refusal,
        None => answered(&platform.changes, routes, request).await,
    };
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        drop_head(&mut response);
    }
    if may_be_wrapped && settings.live().features.strict_envelope {
        response = answer::wrap(response);
    }
    if is_for_browsers {
        cors::decorate(network, origin.as_ref(), &mut response);
    }
    response
}

async fn answered(changes: &TaskTracker, routes: Router, request: Request) -> Response {
    // Whoever plays an outage must be able to end it.
    let is_of_outages = request.uri().path().starts_with(tools::OUTAGES);
    let may_change = request.method() != Method::GET;
    let answer = routes.oneshot(request);
    let answer = async move { if is_of_outages { undisturbed(answer).await } else { answer.await } };
    let answer = if may_change { to_the_end(changes, answer).await } else { answer.await };
    match answer {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// What has begun to change something goes on to its end, whether or not the client stays to hear of it: half of a change, or
/// one that nobody was told of, is worse than either.
async fn to_the_end<T: Send + 'static>(changes: &TaskTracker, work: impl Future<Output = T> + Send + 'static) -> T {
    match changes.spawn(logs::along(work)).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Nobody aborts it; the process ends.
            Err(_) => std::future::pending().await,
        },
    }
}

/// A body that says it is too large is refused before anything else is looked at.
fn refused_body(platform: &Platform, request: &Request) -> Option<Response> {
    let path = request.uri().path();
    let limit = request::body_limit(platform, path);
    let length = request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse::<u64>().ok()?;
    (length > limit).then(|| Problem::too_large(limit).into_response())
}

/// Both forms of a path are served.
fn without_trailing_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/').filter(|path| !path.is_empty() && !path.ends_with('/'))?;
    let path_and_query = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// The router counts HEAD among the methods of a GET route.
fn drop_head(response: &mut http::Response<Body>) {
    let allowed = response.headers().get(header::ALLOW).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let methods: Vec<&str> = allowed.split(',').map(str::trim).filter(|method| *method != "HEAD").collect();
    if let Ok(methods) = HeaderValue::try_from(methods.join(", ")) {
        response.headers_mut().insert(header::ALLOW, methods);
    }
}

#[cfg(test)]
mod tests;
