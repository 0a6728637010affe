//! Sign-in in memory mode; with external stores, see the store's own tests.

use std::time::Duration;

use futures::FutureExt;
use http::header::{AUTHORIZATION, COOKIE};

use super::*;
use crate::settings::Source;

const LIFE: Duration = Duration::from_secs(60);

async fn identity() -> Identity {
    let pairs =
        [("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"), ("DOORMAN_ADMIN_PASSWORD", "long-enough-password")];
    let (settings, _) = Settings::load(Source::from_pairs(pairs)).unwrap();
    let store = Store::open(&settings).await.unwrap();
    Identity::new(&settings, Arc::new(store)).unwrap()
}

async fn token_of(identity: &Identity, username: &str) -> String {
    let user = identity.store().user(username).await.unwrap().unwrap();
    let accesses = identity.accesses(&user).await.unwrap();
    identity.keys().issue((&user, crate::store::now()), accesses, LIFE).unwrap()
}

fn bearing(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {token}").parse().unwrap())])
}

#[tokio::test]
async fn a_valid_token_tells_who_calls_without_waiting() {
    let identity = identity().await;
    let headers = bearing(&token_of(&identity, "admin").await);
    let principal = identity.identify(&headers).now_or_never().expect("memory mode doesn't wait").unwrap();
    assert_eq!((&*principal.username, &*principal.role), ("admin", "admin"));
    assert_eq!(principal.groups.iter().map(|group| &**group).collect::<Vec<_>>(), ["ALL", "admin"]);
}

#[tokio::test]
async fn a_bad_cookie_is_not_saved_by_a_good_header() {
    let identity = identity().await;
    let mut headers = bearing(&token_of(&identity, "admin").await);
    headers.insert(COOKIE, "access_token_cookie=bad".parse().unwrap());
    assert_eq!(identity.identify(&headers).await, Err(Denied::Unauthorized));
    assert_eq!(identity.identify(&HeaderMap::new()).await, Err(Denied::Unauthorized));
}

#[tokio::test]
async fn a_revoked_token_is_denied_and_others_are_not() {
    let identity = identity().await;
    let (first, second) = (token_of(&identity, "admin").await, token_of(&identity, "admin").await);
    let signed_in = identity.sign_in(&bearing(&first)).await.unwrap();
    identity.revoke_token(&signed_in.token).await.unwrap();
    assert_eq!(identity.identify(&bearing(&first)).await, Err(Denied::Unauthorized));
    assert!(identity.identify(&bearing(&second)).await.is_ok());
}

#[tokio::test]
async fn a_revoked_user_is_denied_with_later_tokens_too_until_it_is_taken_back() {
    let identity = identity().await;
    identity.store().set_user_revoked("admin", true).await.unwrap();
    let later = bearing(&token_of(&identity, "admin").await);
    assert_eq!(identity.identify(&later).await, Err(Denied::Unauthorized));
    identity.store().set_user_revoked("admin", false).await.unwrap();
    assert!(identity.identify(&later).await.is_ok());
}

#[tokio::test]
async fn an_inactive_or_deleted_user_is_denied() {
    let identity = identity().await;
    identity.store().save_user(User::new("amy", "amy@example.com", "user")).await.unwrap();
    let headers = bearing(&token_of(&identity, "amy").await);
    assert!(identity.identify(&headers).await.is_ok());
    let inactive = User { active: false, ..User::new("amy", "amy@example.com", "user") };
    identity.store().save_user(inactive).await.unwrap();
    assert_eq!(identity.identify(&headers).await, Err(Denied::Unauthorized));
    identity.store().delete_user("amy").await.unwrap();
    assert_eq!(identity.identify(&headers).await, Err(Denied::Unauthorized));
}

#[tokio::test]
async fn permissions_are_those_of_the_role_at_the_time_of_the_request() {
    let identity = identity().await;
    identity.store().save_user(User::new("amy", "amy@example.com", "ops")).await.unwrap();
    let amy = identity.identify(&bearing(&token_of(&identity, "amy").await)).await.unwrap();
    assert!(!identity.may(&amy, Permission::ManageGateway).await.unwrap(), "there is no such role yet");
    let role = Role {
        name: "ops".into(),
        description: None,
        permissions: [Permission::ManageGateway].into_iter().collect(),
        ui_access: None,
        platform_admin: false,
    };
    identity.store().save_role(role).await.unwrap();
    assert!(identity.may(&amy, Permission::ManageGateway).await.unwrap());
    assert!(!identity.may(&amy, Permission::ManageUsers).await.unwrap());
}

#[tokio::test]
async fn the_seeded_administrator_may_do_everything() {
    let identity = identity().await;
    let admin = identity.identify(&bearing(&token_of(&identity, "admin").await)).await.unwrap();
    for permission in Permission::ALL {
        assert!(identity.may(&admin, permission).await.unwrap(), "{}", permission.flag());
    }
}
