//! What every store has from its first start: the administrator, the role and the groups.
//!
//! Running it again changes nothing that someone may have changed, with one exception: in memory mode the settings say
//! who the administrator is, at each start.

use std::sync::{Arc, PoisonError};

use mongodb::bson::{Bson, Document, doc, serialize_to_document};
use serde_json::{Map, Value};

use super::{
    Collection, Documents, Store, StoreError,
    documents::{Group, Password, Permissions, Role, User},
};
use crate::settings::Admin;

/// Name of the first administrator.
pub const ADMIN: &str = "admin";

fn admin_role() -> Role {
    Role {
        name: "admin".into(),
        description: Some("Administrator role".into()),
        permissions: Permissions::all(),
        ui_access: Some(true),
        platform_admin: false,
    }
}

fn groups() -> [Group; 2] {
    let group = |name: &str, description: &str| Group {
        name: name.into(),
        description: Some(description.into()),
        api_access: Vec::new(),
    };
    [group("admin", "Administrator group with full access"), group("ALL", "Default group with access to all APIs")]
}

fn administrator(admin: &Admin) -> User {
    let unit = || Some("second".to_owned());
    User {
        password: admin.password.as_ref().map(Password::from_setting),
        groups: Arc::new(["ALL".into(), "admin".into()]),
        ui_access: true,
        rate_limit_duration: Some(1),
        rate_limit_duration_type: unit(),
        throttle_duration: Some(1),
        throttle_duration_type: unit(),
        throttle_wait_duration: Some(0),
        throttle_wait_duration_type: unit(),
        throttle_queue_limit: Some(1),
        custom_attributes: Some(Map::from_iter([("custom_key".to_owned(), Value::from("custom_value"))])),
        ..User::new(ADMIN, &admin.email, "admin")
    }
}

impl Store {
    /// Adds what is missing of the administrator, the role `admin` and the groups `admin` and `ALL`.
    pub async fn seed(&self, admin: &Admin) -> Result<(), StoreError> {
        for group in groups() {
            let document = serialize_to_document(&group).map_err(StoreError::documents)?;
            self.insert_missing(Collection::Groups, document).await?;
        }
        self.complete_role(&admin_role()).await?;
        let mut user = administrator(admin);
        if matches!(self.documents, Documents::Memory(_)) {
            // The hash is computed when someone signs in: that takes longer than the rest of a start.
            let password = user.password.take();
            let document = user.to_document().map_err(StoreError::documents)?;
            if !self.insert_missing(Collection::Users, document).await? {
                let seeded = doc! { "email": &admin.email, "ui_access": true, "password": Bson::Null };
                self.set(Collection::Users, &[ADMIN], seeded).await?;
            }
            *self.admin_password.write().unwrap_or_else(PoisonError::into_inner) = password;
            return Ok(());
        }
        match self.user(ADMIN).await? {
            Some(stored) if stored.password.is_some() => Ok(()),
            Some(stored) => self.save_user(User { password: user.password, ..User::clone(&stored) }).await,
            None => match self.insert_user(user).await {
                // Another process was faster, or someone else has the address.
                Err(StoreError::Taken) if self.user(ADMIN).await?.is_some() => Ok(()),
                other => other,
            },
        }
    }

    /// Adds a document unless there is one of its key. Was it added?
    async fn insert_missing(&self, collection: Collection, document: Document) -> Result<bool, StoreError> {
        let key = collection.key_of(&document).unwrap_or_default();
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        if self.find(collection, &key).await?.is_some() {
            return Ok(false);
        }
        match self.insert(collection, document).await {
            Ok(()) => Ok(true),
            // Another process was faster, or a unique value is another's.
            Err(StoreError::Taken) if self.find(collection, &key).await?.is_some() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds the role, or to an existing one the flags that it neither has nor lacks by its own word.
    async fn complete_role(&self, role: &Role) -> Result<(), StoreError> {
        let mut missing = role.to_document();
        if self.insert_missing(Collection::Roles, missing.clone()).await? {
            return Ok(());
        }
        if let Some(stored) = self.find(Collection::Roles, &[&role.name]).await? {
            stored.keys().for_each(|member| {
                missing.remove(member);
            });
        }
        if !missing.is_empty() {
            self.set(Collection::Roles, &[&role.name], missing).await?;
        }
        Ok(())
    }
}
