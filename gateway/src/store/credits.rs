//! Balances of credits, as they are stored: `users_credits.GROUP.available_credits` of a user's document.
//!
//! What always holds: a credit is taken by one operation that looks and takes at once, so a balance never falls below
//! zero, however many take at the same time. The names of groups are no paths: see [`is_group_name`].

use std::sync::Arc;

use mongodb::bson::{Bson, Document};

/// The member of a user's document that holds the balances.
pub const BALANCES: &str = "users_credits";
pub(super) const AVAILABLE: &str = "available_credits";

/// Can balances be kept under this name? MongoDB reads some characters in it otherwise.
pub fn is_group_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('$') && !name.contains(['.', '\0'])
}

/// A balance after one credit was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// The user's own key for the upstream, as it is stored.
    pub user_key: Option<Arc<str>>,
}

impl Balance {
    pub(super) fn of(balance: &Document) -> Self {
        let key = balance.get_str("user_api_key").ok().filter(|key| !key.is_empty());
        Self { user_key: key.map(Arc::from) }
    }
}

pub(super) fn available(balance: &Document) -> Option<i64> {
    match balance.get(AVAILABLE)? {
        Bson::Int32(number) => Some((*number).into()),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) => Some(number.trunc() as i64),
        _ => None,
    }
}

pub(super) fn in_document_mut<'a>(document: &'a mut Document, group: &str) -> Option<&'a mut Document> {
    document.get_document_mut(BALANCES).ok()?.get_document_mut(group).ok()
}

pub(super) fn in_document<'a>(document: &'a Document, group: &str) -> Option<&'a Document> {
    document.get_document(BALANCES).ok()?.get_document(group).ok()
}
