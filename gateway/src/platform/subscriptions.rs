//! Subscriptions of users to APIs: `/platform/subscription` (reference: platform API 11).

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal},
    request::{At, Caller, Sent},
    wire::Text,
};
use crate::{
    identity::Denied,
    problem::Problem,
    snapshot::{CANNOT_BE_SERVED, Entry},
    store::Collection,
};

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(subscribe))
        .routes(routes!(unsubscribe))
        .routes(routes!(own))
        .routes(routes!(of_user))
        .routes(routes!(available))
}

/// Who subscribes to what.
#[derive(Debug, Deserialize, ToSchema)]
struct Subscription {
    username: Text<3, 50>,
    api_name: Text<1, 64>,
    api_version: Text<1, 8>,
}

/// `name/version` of APIs.
#[derive(Debug, Serialize, ToSchema)]
struct Subscribed {
    apis: Vec<String>,
    subscriptions: Option<Apis>,
}

/// `name/version` of APIs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SubscribedApis)]
struct Apis {
    apis: Vec<String>,
}

/// APIs that can be subscribed to.
#[derive(Debug, Serialize, ToSchema)]
struct AvailableApis {
    apis: Vec<Available>,
}

/// An API that can be subscribed to.
#[derive(Debug, Serialize, ToSchema)]
struct Available {
    api_name: String,
    api_version: String,
    api_description: Option<String>,
}

/// Which user.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Username {
    /// The user's name.
    username: String,
}

/// What the two changes differ in.
struct Codes {
    is_end: bool,
    general: &'static str,
    forbidden: (&'static str, &'static str),
}

const SUBSCRIBE: Codes = Codes {
    is_end: false,
    general: "GEN001",
    forbidden: ("SUB009", "You do not have permission to subscribe another user"),
};
const UNSUBSCRIBE: Codes = Codes {
    is_end: true,
    general: "GEN002",
    forbidden: ("SUB010", "You do not have permission to unsubscribe another user"),
};

/// Looks at everything but the subscription itself. Of an API that can't be served nobody knows whom it lets in: it takes no
/// subscriptions until it can, and lets go of those it has.
async fn check(
    platform: &Platform,
    caller: Result<Caller, Denied>,
    body: &Subscription,
    codes: &Codes,
) -> Result<(), Refusal> {
    let caller = caller.map_err(|denied| Problem::new(denied.status(), codes.general, denied.reason()))?;
    if !caller.is(&body.username.0) {
        caller.must(platform, Permission::ManageSubscriptions, codes.forbidden).await?;
    }
    let missing = |message| Refusal::from(Problem::new(StatusCode::NOT_FOUND, codes.general, message));
    let user = platform.identity.store().user(&body.username.0).await?.ok_or_else(|| missing("User not found"))?;
    let snapshot = platform.snapshot.load();
    let refused = |status, message| Err(Refusal::from(Problem::new(status, codes.general, message)));
    match snapshot.find(&body.api_name.0, &body.api_version.0).ok_or_else(|| missing("API not found"))? {
        Entry::Served(api) if api.api.access.admits_groups(&user.groups) => Ok(()),
        Entry::Served(_) => refused(StatusCode::UNAUTHORIZED, "You do not have the correct group for this"),
        Entry::Unservable(_) if codes.is_end => Ok(()),
        Entry::Unservable(_) => refused(StatusCode::SERVICE_UNAVAILABLE, CANNOT_BE_SERVED),
    }
}

/// Subscribes a user to an API: oneself, or with `manage_subscriptions` anyone.
#[utoipa::path(post, path = "/platform/subscription/subscribe", tag = "Subscriptions", request_body = Subscription,
    responses((status = 200, description = "Subscribed.", body = Message)),
    security(("token" = ["manage_subscriptions"])),
    extensions(("x-error-codes" = json!(["400 SUB004", "401 GEN001", "403 SUB009", "404 GEN001", "503 GEN001"]))))]
async fn subscribe(State(platform): State<Platform>, sent: Sent<Subscription>) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    check(&platform, caller, &body, &SUBSCRIBE).await?;
    let api = format!("{}/{}", body.api_name.0, body.api_version.0);
    let store = platform.identity.store();
    if !store.add_to_set(Collection::Subscriptions, &body.username.0, "apis", &api).await? {
        let message = "User is already subscribed to the API";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "SUB004", message).into());
    }
    Ok(Answer::message("Successfully subscribed to the API"))
}

/// Ends a subscription: one's own, or with `manage_subscriptions` anyone's.
#[utoipa::path(post, path = "/platform/subscription/unsubscribe", tag = "Subscriptions", request_body = Subscription,
    responses((status = 200, description = "No longer subscribed.", body = Message)),
    security(("token" = ["manage_subscriptions"])),
    extensions(("x-error-codes" = json!(["400 SUB006", "401 GEN002", "403 SUB010", "404 GEN002"]))))]
async fn unsubscribe(State(platform): State<Platform>, sent: Sent<Subscription>) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    check(&platform, caller, &body, &UNSUBSCRIBE).await?;
    let api = format!("{}/{}", body.api_name.0, body.api_version.0);
    let store = platform.identity.store();
    if !store.take_from_set(Collection::Subscriptions, &body.username.0, "apis", &api).await? {
        let message = "User is not subscribed to the API";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "SUB006", message).into());
    }
    Ok(Answer::message("Successfully unsubscribed from the API"))
}

async fn subscribed(platform: &Platform, username: &str) -> Result<Answer, Refusal> {
    let Some(found) = platform.identity.store().find(Collection::Subscriptions, &[username]).await? else {
        return Ok(Answer::data(json!({ "apis": [] })));
    };
    let apis = found.get("apis").map(crate::store::plain).filter(Value::is_array).unwrap_or_else(|| json!([]));
    Ok(Answer::data(json!({ "apis": apis, "subscriptions": { "apis": apis } })))
}

/// Lists the caller's subscriptions.
#[utoipa::path(get, path = "/platform/subscription/subscriptions", tag = "Subscriptions",
    responses((status = 200, description = "The subscriptions.", body = Subscribed)), security(("token" = [])))]
async fn own(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    subscribed(&platform, &caller.0.principal.username).await
}

/// Lists a user's subscriptions: one's own, or with `manage_subscriptions` anyone's.
#[utoipa::path(get, path = "/platform/subscription/subscriptions/{username}", tag = "Subscriptions", params(Username),
    responses((status = 200, description = "The subscriptions.", body = Subscribed)),
    security(("token" = ["manage_subscriptions"])), extensions(("x-error-codes" = json!(["403 SUB011"]))))]
async fn of_user(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    if !caller.is(&username) {
        let refusal = ("SUB011", "You do not have permission to view another user's subscriptions");
        caller.must(&platform, Permission::ManageSubscriptions, refusal).await?;
    }
    subscribed(&platform, &username).await
}

/// Lists the APIs a user may subscribe to; with `manage_subscriptions` all.
#[utoipa::path(get, path = "/platform/subscription/available-apis/{username}", tag = "Subscriptions",
    params(Username), responses((status = 200, description = "The APIs.", body = AvailableApis)),
    security(("token" = ["manage_subscriptions"])), extensions(("x-error-codes" = json!(["403 SUB009"]))))]
async fn available(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let sees_all = caller.may(&platform, Permission::ManageSubscriptions).await?;
    if !sees_all && !caller.is(&username) {
        let message = "You do not have permission to view available APIs for this user";
        return Err(Problem::new(StatusCode::FORBIDDEN, "SUB009", message).into());
    }
    let groups = &caller.0.principal.groups;
    let snapshot = platform.snapshot.load();
    let mut apis: Vec<_> = snapshot.apis().filter(|api| sees_all || api.api.access.admits_groups(groups)).collect();
    apis.sort_by(|a, b| a.api.key.cmp(&b.api.key));
    let shown = apis.iter().map(|api| {
        json!({ "api_name": api.api.key.name, "api_version": api.api.key.version,
            "api_description": api.api.description })
    });
    Ok(Answer::data(json!({ "apis": shown.collect::<Vec<_>>() })))
}
