//! Users: `/platform/user` (reference: platform API 5).

use std::sync::Arc;

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use mongodb::bson::{Binary, Bson, spec::BinarySubtype};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal, bad, busy},
    request::{Asked, At, Caller, PAGE_SIZE, PageQuery, Sent},
    wire::{AnyText, Flag, Int, Text, given},
};
use crate::{
    accounting::UserLimits,
    identity::{Denied, is_strong},
    problem::Problem,
    store::{ADMIN, Collection, Listing, Store, StoreError, User, documents::TOKENS_FROM, now},
};

/// The name or the address is in use.
const TAKEN: &str = "USR001";
/// There is no such user.
const UNKNOWN: &str = "USR002";
/// The password is too simple.
const WEAK: &str = "USR005";
/// Nobody is signed in (own document, lists).
const NOT_SIGNED_IN: &str = "GTW998";
/// Names are for ever: tokens, balances and subscriptions go by them.
const UNCHANGED: &str = "USR004";
/// More custom attributes than there may be.
const TOO_MANY_ATTRIBUTES: &str = "USR016";

const NOT_OWN: (&str, &str) = ("USR006", "Can only update your own information");
const NOT_OWN_PASSWORD: (&str, &str) = ("USR006", "Can only update your own password");
const NOT_OWN_ACCOUNT: (&str, &str) = ("USR007", "Can only delete your own account");
const NOT_OWN_DOCUMENT: (&str, &str) = ("USR008", "Unable to retrieve information for user");

/// Members that callers without `manage_users` can't change, not even of themselves.
const RESTRICTED: [&str; 5] = ["active", "force_password_reset", "groups", "role", "username"];
/// All that may be changed of the first administrator.
const CHANGEABLE_OF_ADMIN: [&str; 11] = [
    "bandwidth_limit_bytes",
    "bandwidth_limit_window",
    "rate_limit_duration",
    "rate_limit_duration_type",
    "rate_limit_enabled",
    "throttle_duration",
    "throttle_duration_type",
    "throttle_enabled",
    "throttle_queue_limit",
    "throttle_wait_duration",
    "throttle_wait_duration_type",
];

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(create, list))
        .routes(routes!(list_all))
        .routes(routes!(me))
        .routes(routes!(read_by_email))
        .routes(routes!(read, update, delete))
        .routes(routes!(update_password))
}

/// A user to add.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(examples(json!({ "username": "amy", "email": "amy@example.com", "password": "Correct-Horse-9-Battery",
    "role": "user", "groups": ["ALL"], "rate_limit_duration": 100, "rate_limit_duration_type": "minute" })))]
struct NewUser {
    /// Unique, and for ever.
    username: Text<3, 50>,
    /// Unique too; sign-in takes either.
    email: Text<3, 127>,
    /// With upper and lower case letters, digits and others. Replaced by its hash before anything is stored.
    password: Text<16, 50>,
    /// The name of the one role; where there is none of it, the user has no permission.
    role: Text<2, 50>,
    /// Names of groups.
    #[serde(default)]
    groups: Vec<AnyText>,
    #[serde(flatten)]
    limits: Limits,
    /// `false`: the user is refused everywhere.
    #[serde(default = "Flag::yes")]
    active: Flag,
    /// Kept for web interfaces; nothing here asks for it.
    #[serde(default = "Flag::no")]
    ui_access: Flag,
}

/// What a user may use, and what others note about the user. The limits count calls of APIs that ask who calls. Windows
/// and waits are told in `second`, `minute`, `hour`, `day`, `week`, `month` (30 days) or `year` (365), also in the
/// plural; another word is a minute.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct Limits {
    /// Requests in one window; more are answered 429. 0 or absent: no limit, unless `rate_limit_enabled` is true. The
    /// first administrator begins with 1 a second.
    rate_limit_duration: Option<Int<0>>,
    /// The window of `rate_limit_duration`; absent: a minute.
    rate_limit_duration_type: Option<Text<1, 7>>,
    /// `true`: there is a limit, of 60 requests where `rate_limit_duration` gives none. `false` switches nothing off:
    /// set `rate_limit_duration` to 0.
    rate_limit_enabled: Option<Flag>,
    /// Requests in one window that go on at once; further ones wait. 0 or absent: 10, where anything else switches
    /// throttling on. The first administrator begins with 1 a second.
    throttle_duration: Option<Int<0>>,
    /// The window of `throttle_duration` and `throttle_queue_limit`; absent: a second.
    throttle_duration_type: Option<Text<1, 7>>,
    /// How long a request waits for each one beyond `throttle_duration`, itself included; 0 or absent: half a second.
    throttle_wait_duration: Option<Int<0>>,
    /// The unit of `throttle_wait_duration`; absent: seconds.
    throttle_wait_duration_type: Option<Text<1, 7>>,
    /// The most requests in one window, those that wait and those that don't; more are answered 429, and so are those
    /// that would wait more than a minute. 0 or absent: 10, where anything else switches throttling on.
    throttle_queue_limit: Option<Int<0>>,
    /// `true` switches throttling on, as a `throttle_duration` or `throttle_queue_limit` above 0 does. `false` switches
    /// nothing off: set both to 0.
    throttle_enabled: Option<Flag>,
    /// Up to ten members of any kind, kept for others.
    custom_attributes: Option<Map<String, Value>>,
    /// Bytes of requests and answers in one window; 0 or absent: no limit.
    bandwidth_limit_bytes: Option<Int<0>>,
    /// The window of `bandwidth_limit_bytes`; absent: a day.
    bandwidth_limit_window: Option<Text<1, 10>>,
    /// `false` switches the limit off.
    bandwidth_limit_enabled: Option<Flag>,
}

/// What to change of a user; what is absent or null stays.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct UserUpdate {
    /// Can't be changed.
    username: Option<Text<3, 50>>,
    /// Unique; sign-in takes it.
    email: Option<Text<3, 127>>,
    /// 16 characters or more, with upper and lower case letters, digits and others.
    #[serde(skip_serializing)]
    password: Option<Text<6, 50>>,
    /// With `manage_users` only, as the next two.
    role: Option<Text<2, 50>>,
    /// All groups that the user is to have.
    groups: Option<Vec<AnyText>>,
    /// `false`: the user is refused everywhere.
    active: Option<Flag>,
    /// Kept for web interfaces; nothing here asks for it.
    ui_access: Option<Flag>,
    /// The user can't sign in until the password is changed. With `manage_users` only.
    force_password_reset: Option<Flag>,
    #[serde(flatten)]
    limits: Limits,
}

/// A new password.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({ "new_password": "Another-Horse-7-Battery" })))]
struct NewPassword {
    new_password: Text<6, 36>,
}

/// Users, as far as the caller may see them.
#[derive(Debug, Serialize, ToSchema)]
struct Users {
    users: Vec<Map<String, Value>>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Username {
    /// The user's name.
    username: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Email {
    /// The user's e-mail address.
    email: String,
}

/// From when on tokens are a new user's: others who hold the key may issue one in the same second.
fn this_second() -> i64 {
    i64::try_from(now()).unwrap_or(i64::MAX)
}

/// From when on tokens are this user's again: none that was issued until now is.
fn from_now_on(user: Option<&User>) -> i64 {
    // A token of this second may be older than this moment, and one of the second that was told before is.
    let last = now().max(user.and_then(|user| user.tokens_from).unwrap_or_default());
    i64::try_from(last.saturating_add(1)).unwrap_or(i64::MAX)
}

/// Sign-in looks for addresses first: an address that is another's name, or a name that is another's address, would keep
/// the other out.
pub(super) async fn is_anothers_login(platform: &Platform, username: &str, email: &str) -> Result<bool, StoreError> {
    let store = platform.identity.store();
    let is_anothers = |user: Option<Arc<User>>| user.is_some_and(|user| *user.username != *username);
    Ok(is_anothers(store.user(email).await?) || is_anothers(store.user_by_email(username).await?))
}

fn shown(user: &User) -> Value {
    serde_json::to_value(user).unwrap_or_default()
}

/// The same with what is used of the user's bytes, where they are limited and that can be told.
async fn shown_with_usage(platform: &Platform, user: &User) -> Value {
    let mut shown = shown(user);
    if let Some(bandwidth) = UserLimits::of(user).bandwidth {
        match platform.accounts.used(&bandwidth).await {
            Ok((used, resets_at)) => {
                shown["bandwidth_usage_bytes"] = used.into();
                shown["bandwidth_resets_at"] = resets_at.second().into();
            }
            Err(error) => tracing::warn!(%error, "what is used of a user's bytes is not known"),
        }
    }
    shown
}

fn forbidden((code, message): (&'static str, &'static str)) -> Refusal {
    Problem::new(StatusCode::FORBIDDEN, code, message).into()
}

fn unknown() -> Refusal {
    Problem::new(StatusCode::NOT_FOUND, UNKNOWN, "User not found").into()
}

/// What administrators' users look like to others.
fn hidden() -> Refusal {
    Problem::without_code(StatusCode::NOT_FOUND, "User not found").into()
}

fn not_signed_in(denied: Denied) -> Problem {
    Problem::new(denied.status(), NOT_SIGNED_IN, denied.reason())
}

fn check_attributes(limits: &Limits) -> Result<(), Refusal> {
    const MOST: usize = 10;
    match &limits.custom_attributes {
        Some(attributes) if attributes.len() > MOST => {
            Err(bad(TOO_MANY_ATTRIBUTES, "Maximum 10 custom attributes allowed. Please replace an existing one."))
        }
        _ => Ok(()),
    }
}

/// The member to store of a password that is good enough.
async fn hashed(platform: &Platform, password: String) -> Result<Bson, Refusal> {
    Ok(binary(hash(platform, password).await?))
}

/// A hash as existing databases have it.
pub(super) fn binary(bytes: Vec<u8>) -> Bson {
    Binary { subtype: BinarySubtype::Generic, bytes }.into()
}

/// The hash of a password that is good enough.
pub(super) async fn hash(platform: &Platform, password: String) -> Result<Vec<u8>, Refusal> {
    if !is_strong(&password) {
        return Err(bad(
            WEAK,
            "Password must include at least 16 characters, one uppercase letter, one lowercase letter, one digit, \
             and one special character",
        ));
    }
    Ok(platform.identity.passwords().hash(password).await.map_err(busy)?)
}

/// Adds a user.
#[utoipa::path(post, path = "/platform/user", tag = "Users", request_body = NewUser,
    responses((status = 201, description = "The user was added.", body = Message)),
    security(("token" = ["manage_users"])),
    extensions(("x-error-codes" = json!(["400 USR001", "400 USR005", "400 USR016", "403 USR006", "403 USR015"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<NewUser>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    let caller = caller?;
    caller.must(&platform, Permission::ManageUsers, NOT_OWN).await?;
    if platform.is_admin_role(&new.role.0).await? && !caller.is_admin(&platform).await? {
        return Err(forbidden(("USR015", "Only admin may create users with the admin role")));
    }
    check_attributes(&new.limits)?;
    let store = platform.identity.store();
    if store.user(&new.username.0).await?.is_some() {
        return Err(bad(TAKEN, "Username already exists"));
    }
    if store.user_by_email(&new.email.0).await?.is_some() {
        return Err(bad(TAKEN, "Email already exists"));
    }
    if is_anothers_login(&platform, &new.username.0, &new.email.0).await? {
        return Err(bad(TAKEN, "Email already exists"));
    }
    let mut document = given(&new)?;
    document.entry("bandwidth_limit_window").or_insert_with(|| "day".into());
    document.insert("password", hashed(&platform, new.password.0).await?);
    document.insert(TOKENS_FROM, this_second());
    match store.insert(Collection::Users, document).await {
        Ok(()) => Ok(Answer::created("User created successfully")),
        // Someone else was faster.
        Err(StoreError::Taken) => Err(bad(TAKEN, "Username already exists")),
        Err(error) => Err(error.into()),
    }
}

/// The caller's own document.
#[utoipa::path(get, path = "/platform/user/me", tag = "Users", operation_id = "read_own",
    responses((status = 200, description = "The caller.", body = User)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["401 GTW998", "404 USR002"]))))]
async fn me(State(platform): State<Platform>, caller: Result<Caller, Denied>) -> Result<Answer, Refusal> {
    let caller = caller.map_err(not_signed_in)?;
    let user = platform.identity.store().user(&caller.0.principal.username).await?;
    Ok(Answer::data(shown_with_usage(&platform, &*user.ok_or_else(unknown)?).await))
}

/// Lists users; administrators only for administrators.
#[utoipa::path(get, path = "/platform/user/all", tag = "Users", params(PageQuery),
    responses((status = 200, description = "A page of users.", body = Users)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 PAG001", "401 GTW998"]))))]
async fn list_all(
    State(platform): State<Platform>,
    Asked(query): Asked<PageQuery>,
    caller: Result<Caller, Denied>,
) -> Result<Answer, Refusal> {
    let caller = caller.map_err(not_signed_in)?;
    let page = query.page(&platform, PAGE_SIZE)?;
    let (found, _) = platform.identity.store().users(&page.listing()).await?;
    let sees_admins = caller.is_admin(&platform).await?;
    let mut users = Vec::with_capacity(found.len());
    for user in found {
        if sees_admins || !platform.is_admin_user(&user).await? {
            users.push(shown(&user));
        }
    }
    Ok(Answer::data(json!({ "users": users })))
}

/// The same as `/platform/user/all`.
#[utoipa::path(get, path = "/platform/user", tag = "Users", params(PageQuery),
    responses((status = 200, description = "A page of users.", body = Users)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 PAG001", "401 GTW998"]))))]
async fn list(
    state: State<Platform>,
    query: Asked<PageQuery>,
    caller: Result<Caller, Denied>,
) -> Result<Answer, Refusal> {
    list_all(state, query, caller).await
}

/// What a caller may know of a user found by name or address.
async fn readable(
    platform: &Platform,
    caller: &Caller,
    user: Option<Arc<User>>,
    is_own: bool,
) -> Result<Answer, Refusal> {
    let is_admin = caller.is_admin(platform).await?;
    if !is_own && user.as_ref().is_some_and(|user| &*user.username == ADMIN) && !is_admin {
        return Err(hidden());
    }
    if !is_own {
        caller.must(platform, Permission::ManageUsers, NOT_OWN_DOCUMENT).await?;
    }
    let user = user.ok_or_else(unknown)?;
    if !is_own && !is_admin && platform.is_admin_user(&user).await? {
        return Err(hidden());
    }
    Ok(Answer::data(shown_with_usage(platform, &user).await))
}

/// Reads a user: oneself, or with `manage_users` anyone.
#[utoipa::path(get, path = "/platform/user/{username}", tag = "Users", params(Username),
    responses((status = 200, description = "The user.", body = User)), security(("token" = ["manage_users"])),
    extensions(("x-error-codes" = json!(["403 USR008", "404 USR002"]))))]
async fn read(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let user = platform.identity.store().user(&username).await?;
    readable(&platform, &caller, user, caller.is(&username)).await
}

/// Reads a user by e-mail address: oneself, or with `manage_users` anyone.
#[utoipa::path(get, path = "/platform/user/email/{email}", tag = "Users", params(Email),
    responses((status = 200, description = "The user.", body = User)), security(("token" = ["manage_users"])),
    extensions(("x-error-codes" = json!(["403 USR008", "404 USR002"]))))]
async fn read_by_email(
    State(platform): State<Platform>,
    At(Email { email }): At<Email>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let user = platform.identity.store().user_by_email(&email).await?;
    let is_own = user.as_ref().is_some_and(|user| caller.is(&user.username));
    readable(&platform, &caller, user, is_own).await
}

/// Changes a user: oneself, one's own limits too, or with `manage_users` anyone.
#[utoipa::path(put, path = "/platform/user/{username}", tag = "Users", params(Username), request_body = UserUpdate,
    responses((status = 200, description = "The user was changed.", body = Message)),
    security(("token" = ["manage_users"])),
    extensions(("x-error-codes" = json!(["400 USR001", "400 USR004", "400 USR005", "400 USR016", "403 USR006",
        "403 USR012", "403 USR013", "403 USR020", "403 USR023", "404 USR002"]))))]
async fn update(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    sent: Sent<UserUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    let caller = caller?;
    let mut members = given(&update)?;
    let is_named = |name: &str| if name == "password" { update.password.is_some() } else { members.contains_key(name) };
    let mut named = members.keys().map(String::as_str).chain(update.password.as_ref().map(|_| "password"));
    if username == ADMIN && !named.all(|name| CHANGEABLE_OF_ADMIN.contains(&name)) {
        return Err(forbidden(("USR020", "Super admin user cannot be modified")));
    }
    let manages = caller.may(&platform, Permission::ManageUsers).await?;
    if !caller.is(&username) && !manages {
        return Err(forbidden(NOT_OWN));
    }
    let restricted: Vec<&str> = RESTRICTED.into_iter().filter(|name| !manages && is_named(name)).collect();
    if !restricted.is_empty() {
        let names = restricted.join(", ");
        let message = format!("Cannot modify restricted fields without manage_users permission: {names}");
        return Err(Problem::new(StatusCode::FORBIDDEN, "USR023", message).into());
    }
    let store = platform.identity.store();
    let stored = store.user(&username).await?;
    if !caller.is_admin(&platform).await? {
        let is_admin = match &stored {
            Some(user) => platform.is_admin_user(user).await?,
            None => false,
        };
        if is_admin {
            return Err(forbidden(("USR012", "Only admin may modify admin users")));
        }
        if let Some(role) = &update.role
            && platform.is_admin_role(&role.0).await?
        {
            return Err(forbidden(("USR013", "Only admin may change admin role assignments")));
        }
    }
    let stored = stored.ok_or_else(unknown)?;
    check_attributes(&update.limits)?;
    if update.username.is_some_and(|name| name.0 != username) {
        return Err(bad(UNCHANGED, "Username cannot be changed"));
    }
    if let Some(email) = &update.email
        && is_anothers_login(&platform, &username, &email.0).await?
    {
        return Err(bad(TAKEN, "Email already exists"));
    }
    let is_taken_away = update.password.is_some() && !caller.is(&username);
    if let Some(password) = update.password {
        members.insert("password", hashed(&platform, password.0).await?);
        members.entry("force_password_reset").or_insert(Bson::Boolean(false));
    }
    if is_taken_away || update.force_password_reset.is_some_and(|is_forced| is_forced.0) {
        members.insert(TOKENS_FROM, from_now_on(Some(&stored)));
    }
    if members.is_empty() {
        return Ok(Answer::message("User updated successfully"));
    }
    match store.set(Collection::Users, &[&stored.username], members).await {
        Ok(true) => Ok(Answer::message("User updated successfully")),
        Ok(false) => Err(unknown()),
        Err(StoreError::Taken) => Err(bad(TAKEN, "Email already exists")),
        Err(error) => Err(error.into()),
    }
}

/// Changes a password: one's own, or with `manage_users` anyone's.
#[utoipa::path(put, path = "/platform/user/{username}/update-password", tag = "Users", params(Username),
    request_body = NewPassword, responses((status = 200, description = "The password was changed.", body = Message)),
    security(("token" = ["manage_users"])),
    extensions(("x-error-codes" = json!(["400 USR005", "403 USR006", "403 USR012", "403 USR022", "404 USR002"]))))]
async fn update_password(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    sent: Sent<NewPassword>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    if username == ADMIN {
        return Err(forbidden(("USR022", "Super admin password cannot be changed via UI")));
    }
    if !caller.is(&username) {
        caller.must(&platform, Permission::ManageUsers, NOT_OWN_PASSWORD).await?;
    }
    let store = platform.identity.store();
    let user = store.user(&username).await?;
    if let Some(user) = &user
        && !caller.is(&username)
        && platform.is_admin_user(user).await?
        && !caller.is_admin(&platform).await?
    {
        return Err(forbidden(("USR012", "Only admin may modify admin users")));
    }
    let password = hashed(&platform, body.new_password.0).await?;
    let mut members = mongodb::bson::doc! { "password": password, "force_password_reset": false };
    if !caller.is(&username) {
        members.insert(TOKENS_FROM, from_now_on(user.as_deref()));
    }
    if !store.set(Collection::Users, &[&username], members).await? {
        return Err(unknown());
    }
    Ok(Answer::message("User updated successfully"))
}

/// Deletes a user: oneself, or with `manage_users` anyone.
#[utoipa::path(delete, path = "/platform/user/{username}", tag = "Users", params(Username),
    responses((status = 200, description = "The user was deleted.", body = Message)),
    security(("token" = ["manage_users"])),
    extensions(("x-error-codes" = json!(["403 USR007", "403 USR014", "403 USR021", "404 USR002"]))))]
async fn delete(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    if username == ADMIN {
        return Err(forbidden(("USR021", "Super admin user cannot be deleted")));
    }
    if !caller.is(&username) {
        caller.must(&platform, Permission::ManageUsers, NOT_OWN_ACCOUNT).await?;
    }
    let store = platform.identity.store();
    let user = store.user(&username).await?;
    if let Some(user) = &user
        && platform.is_admin_user(user).await?
        && !caller.is_admin(&platform).await?
    {
        return Err(forbidden(("USR014", "Only admin may delete admin users")));
    }
    let was_there = store.delete_user(&username).await?;
    // Else the next one of this name would have them. A deletion that broke off here can be repeated.
    forget_belongings(store, &username).await?;
    if was_there { Ok(Answer::message("User deleted successfully")) } else { Err(unknown()) }
}

/// Forgets what is kept for a user of this name.
pub(super) async fn forget_belongings(store: &Store, username: &str) -> Result<(), StoreError> {
    for collection in [Collection::Subscriptions, Collection::UserCredits, Collection::TierAssignments] {
        store.remove(collection, &[username]).await?;
    }
    for entry in store.list(Collection::VaultEntries, &Listing::with("username", username)).await?.0 {
        if let Ok(key) = entry.get_str("key_name") {
            store.remove(Collection::VaultEntries, &[username, key]).await?;
        }
    }
    Ok(())
}
