//! What users have of credits.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use mongodb::bson::{Bson, Document, doc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{NO_MANAGE, Name, UNUSABLE_NAME, check_group, sealed};
use crate::{
    crypt::{self, Sealer},
    platform::{
        Platform,
        answer::{Answer, Message, Refusal, bad, failed, refused},
        request::{Asked, At, Caller, PAGE_SIZE, PageQuery, Search, SearchQuery, Sent},
        wire::{AnyText, Int, Text},
    },
    store::{Collection, OPEN_CHARGES, plain_document},
};

/// There is no such user, or the user has no credits.
const UNKNOWN: &str = "CRD017";
const NO_LIST: (&str, &str) = ("CRD002", "Unable to retrieve credits for all users");
const NO_READ: (&str, &str) = ("CRD003", "Unable to retrieve credits for user");
/// A stored key was encrypted with another key than those that are set.
const UNREADABLE: &str = "CRD018";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(list_balances))
        .routes(routes!(rotate_key))
        .routes(routes!(read_balances, save_balances))
}

/// What a user has.
#[derive(Deserialize, ToSchema)]
struct UserCredits {
    username: Text<3, 50>,
    /// By credit group. It replaces all that the user has.
    users_credits: BTreeMap<String, Balance>,
}

/// What a user has of one group.
#[derive(Deserialize, ToSchema)]
#[schema(as = CreditBalance)]
struct Balance {
    tier_name: Text<1, 50>,
    /// Calls that the user can still make.
    available_credits: Int<0>,
    /// Told, not enforced.
    reset_date: Option<AnyText>,
    /// The user's own key; upstreams are sent it in place of the group's. It is stored encrypted.
    user_api_key: Option<AnyText>,
}

/// What a user has, as it is told.
#[derive(Debug, Serialize, ToSchema)]
struct StoredUserCredits {
    username: String,
    users_credits: BTreeMap<String, StoredBalance>,
}

/// What a user has of one group, as it is told.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StoredCreditBalance)]
struct StoredBalance {
    tier_name: Option<String>,
    available_credits: i64,
    reset_date: Option<String>,
    user_api_key: Option<String>,
}

/// A page of what users have.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsersCredits)]
struct Page {
    user_credits: Vec<StoredUserCredits>,
    page: u64,
    page_size: u32,
    has_next: bool,
    total: u64,
}

/// Whose key to replace.
#[derive(Debug, Deserialize, ToSchema)]
struct Rotation {
    api_credit_group: Option<AnyText>,
}

/// The key that was made.
#[derive(Debug, Serialize, ToSchema)]
struct NewKey {
    api_key: String,
}

/// What is stored of a user, with keys in clear.
fn shown(stored: &Document, sealer: &Sealer) -> Result<Value, Refusal> {
    let mut members = plain_document(stored);
    members.remove(OPEN_CHARGES);
    for (group, balance) in members.get_mut("users_credits").and_then(Value::as_object_mut).into_iter().flatten() {
        let key = match balance["user_api_key"].as_str() {
            None => Value::Null,
            Some(key) => match sealer.open(key) {
                Ok(key) => key.into(),
                Err(error) => {
                    let username = stored.get_str("username").unwrap_or_default();
                    tracing::error!(username, group, %error, "the key of a user can't be shown");
                    let message = "A stored key can't be decrypted with any of the keys that are set";
                    return Err(refused(StatusCode::INTERNAL_SERVER_ERROR, UNREADABLE, message));
                }
            },
        };
        if let Some(balance) = balance.as_object_mut() {
            balance.insert("user_api_key".into(), key);
            balance.entry("reset_date").or_insert(Value::Null);
        }
    }
    Ok(members.into())
}

fn unknown() -> Refusal {
    refused(StatusCode::NOT_FOUND, UNKNOWN, "User credits not found")
}

/// Is the text in the user's name, or in that of a group the user has credits of?
fn has(stored: &Document, search: &Search) -> bool {
    let groups = stored.get_document("users_credits").into_iter().flat_map(Document::keys).map(String::as_str);
    search.is_in(stored.get_str("username").into_iter().chain(groups))
}

/// Lists the credits of users.
#[utoipa::path(get, path = "/platform/credit/all", tag = "Credits", params(PageQuery, SearchQuery),
    responses((status = 200, description = "A page of what users have; `search` looks at names of users and groups.",
        body = Page)),
    security(("token" = ["manage_credits"])),
    extensions(("x-error-codes" = json!(["400 PAG001", "403 CRD002", "500 CRD018"]))))]
async fn list_balances(
    State(platform): State<Platform>,
    Asked(query): Asked<PageQuery>,
    Asked(searched): Asked<SearchQuery>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageCredits, NO_LIST).await?;
    let page = query.page(&platform, PAGE_SIZE)?;
    let store = platform.identity.store();
    let (found, total) = match searched.search() {
        None => store.list(Collection::UserCredits, &page.listing()).await?,
        Some(search) => {
            let all = store.all(Collection::UserCredits).await?;
            let found: Vec<Arc<Document>> = all.into_iter().filter(|stored| has(stored, &search)).collect();
            let total = found.len() as u64;
            (page.cut(found), total)
        }
    };
    let shown: Result<Vec<Value>, Refusal> = found.iter().map(|stored| shown(stored, &platform.sealer)).collect();
    Ok(Answer::data(page.of("user_credits", shown?, total)))
}

/// Gives callers a random key of their own, which upstreams are sent in place of the group's; the one before it is gone.
///
/// It is for a group that the caller has credits of, and for the caller's calls only. They carry it at once: an upstream
/// that does not know it refuses them.
#[utoipa::path(post, path = "/platform/credit/rotate-key", tag = "Credits", request_body = Rotation,
    responses((status = 200, description = "The new key.", body = NewKey)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 CRD009", "400 CRD020", "404 CRD017"]))))]
async fn rotate_key(State(platform): State<Platform>, sent: Sent<Rotation>) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    let group = body.api_credit_group.map(|group| group.0).filter(|group| !group.is_empty());
    let group = group.ok_or_else(|| bad("CRD020", "api_credit_group is required"))?;
    check_group(&group)?;
    let key = crypt::secret().map_err(|error| failed(&error))?;
    let stored = sealed(&platform.sealer, &key)?;
    // Nothing but the key: calls may be taking credits at the same time.
    let (username, place) = (&*caller.0.principal.username, ["users_credits", &group]);
    let store = platform.identity.store();
    if !store.set_within(Collection::UserCredits, username, &place, ("user_api_key", stored.into())).await? {
        return Err(unknown());
    }
    Ok(Answer::data(json!(NewKey { api_key: key })))
}

/// Reads the credits of a user: of oneself, or with `manage_credits` of anyone.
#[utoipa::path(get, path = "/platform/credit/{name}", tag = "Credits", params(Name),
    responses((status = 200, description = "What the user has now, with the user's own keys in clear.",
        body = StoredUserCredits)),
    security(("token" = ["manage_credits"])),
    extensions(("x-error-codes" = json!(["403 CRD003", "404 CRD017", "500 CRD018"]))))]
async fn read_balances(
    State(platform): State<Platform>,
    At(Name { name }): At<Name>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    if !caller.is(&name) {
        caller.must(&platform, Permission::ManageCredits, NO_READ).await?;
    }
    let found = platform.identity.store().find(Collection::UserCredits, &[&name]).await?;
    Ok(Answer::data(shown(&*found.ok_or_else(unknown)?, &platform.sealer)?))
}

/// Replaces all credits of a user.
#[utoipa::path(post, path = "/platform/credit/{name}", tag = "Credits", params(Name), request_body = UserCredits,
    responses((status = 200, description = "It is what the user has now.", body = Message)),
    security(("token" = ["manage_credits"])),
    extensions(("x-error-codes" = json!(["400 CRD009", "400 CRD010", "400 CRD014", "403 CRD001"]))))]
async fn save_balances(
    State(platform): State<Platform>,
    At(Name { name }): At<Name>,
    sent: Sent<UserCredits>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    caller?.must(&platform, Permission::ManageCredits, NO_MANAGE).await?;
    if body.username.0 != name {
        return Err(bad("CRD014", "Username in body does not match path"));
    }
    let mut balances = Document::new();
    for (group, balance) in body.users_credits {
        check_group(&group)?;
        if group.chars().count() > 50 {
            return Err(bad(UNUSABLE_NAME, "The name of a credit group has 50 characters at the most"));
        }
        let key = balance.user_api_key.map(|key| key.0).filter(|key| !key.is_empty());
        let key = key.map(|key| sealed(&platform.sealer, &key)).transpose()?;
        let stored = doc! {
            "tier_name": balance.tier_name.0,
            "available_credits": balance.available_credits.0,
            "reset_date": balance.reset_date.map(|date| date.0),
            "user_api_key": key.map_or(Bson::Null, Bson::from),
        };
        balances.insert(group, stored);
    }
    let store = platform.identity.store();
    store.save(Collection::UserCredits, doc! { "username": name, "users_credits": balances }).await?;
    Ok(Answer::message("Credits saved successfully"))
}
