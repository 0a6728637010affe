//! What every store has from its first start: the administrator, the role and the groups.
//!
//! Running it again changes nothing that someone may have changed, with one exception: in memory mode the settings say
//! who the administrator is, at each start.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    Documents, Store, StoreError,
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
            if self.group(&group.name).await?.is_none() {
                match self.save_group(group).await {
                    // Another process was faster.
                    Err(StoreError::Taken) => {}
                    other => other?,
                }
            }
        }
        match &self.documents {
            Documents::Memory(documents) => {
                if documents.role(ADMIN).is_none() {
                    documents.save_role(admin_role());
                }
                let mut user = administrator(admin);
                if let Some(stored) = documents.user(ADMIN) {
                    let seeded = std::mem::replace(&mut user, User::clone(&stored));
                    user = User { email: seeded.email, password: seeded.password, ui_access: true, ..user };
                }
                documents.save_user(user)
            }
            Documents::Mongo(documents) => {
                documents.complete_role(&admin_role()).await?;
                let Some(stored) = documents.user(ADMIN).await? else {
                    return match documents.insert_user(administrator(admin)).await {
                        // Another process was faster, or someone else has the address.
                        Err(StoreError::Taken) if documents.user(ADMIN).await?.is_some() => Ok(()),
                        other => other,
                    };
                };
                if stored.password.is_none() {
                    let password = administrator(admin).password;
                    documents.save_user(User { password, ..User::clone(&stored) }).await?;
                }
                Ok(())
            }
        }
    }
}
