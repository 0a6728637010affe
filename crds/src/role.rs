//! `DoormanRole`: a named set of permissions on the platform API, and a name that APIs admit.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::FieldError;
use crate::gateway::GatewayRef;

/// A role users can have. It grants permissions on the platform API, and APIs may admit it by name.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "doorman.dev",
    version = "v1alpha1",
    kind = "DoormanRole",
    plural = "doormanroles",
    singular = "doormanrole",
    shortname = "drole",
    category = "doorman",
    namespaced,
    status = "DoormanRoleStatus",
    derive = "PartialEq",
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.name == oldSelf.name", "spec.name can't be changed: create another DoormanRole"))]
pub struct DoormanRoleSpec {
    /// Name of the role as users and APIs refer to it, 1 to 50 characters. The built-in role `admin` can't be redefined.
    #[schemars(length(min = 1, max = 50))]
    #[x_kube(validation = ("!(self.lowerAscii() in ['admin', 'platform admin'])", "the built-in role admin can't be redefined"))]
    pub name: String,
    /// What the role is for, up to 255 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub description: Option<String>,
    /// What members may do on the platform API. Absent: nothing beyond what every signed-in user may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub permissions: Option<Vec<Permission>>,
    /// Gateways that take this role. Absent: every gateway whose `spec.apis` selects it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub gateway_refs: Option<Vec<GatewayRef>>,
}

/// One permission on the platform API; each stands for the flag of the same name in role documents.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Permission {
    /// `manage_users`: create users; read, change and delete others.
    ManageUsers,
    /// `manage_apis`: APIs, protos and discovery.
    ManageApis,
    /// `manage_endpoints`: endpoints and their validation.
    ManageEndpoints,
    /// `manage_groups`: groups.
    ManageGroups,
    /// `manage_roles`: roles.
    ManageRoles,
    /// `manage_routings`: client routings.
    ManageRoutings,
    /// `manage_gateway`: status, caches, monitoring, configuration export and import.
    ManageGateway,
    /// `manage_subscriptions`: subscriptions of other users.
    ManageSubscriptions,
    /// `manage_security`: security settings, memory dump and restore.
    ManageSecurity,
    /// `manage_tiers`: tiers and their assignment.
    ManageTiers,
    /// `manage_rate_limits`: rate-limit rules.
    ManageRateLimits,
    /// `manage_credits`: credit definitions and balances.
    ManageCredits,
    /// `manage_auth`: revoke tokens, enable and disable users.
    ManageAuth,
    /// `view_analytics`: analytics.
    ViewAnalytics,
    /// `view_logs`: logs.
    ViewLogs,
    /// `export_logs`: log export and download.
    ExportLogs,
}

impl Permission {
    /// Every permission, in the order of the reference (platform API, section 3).
    pub const ALL: [Self; 16] = [
        Self::ManageUsers,
        Self::ManageApis,
        Self::ManageEndpoints,
        Self::ManageGroups,
        Self::ManageRoles,
        Self::ManageRoutings,
        Self::ManageGateway,
        Self::ManageSubscriptions,
        Self::ManageSecurity,
        Self::ManageTiers,
        Self::ManageRateLimits,
        Self::ManageCredits,
        Self::ManageAuth,
        Self::ViewAnalytics,
        Self::ViewLogs,
        Self::ExportLogs,
    ];

    /// Name of the flag in role documents and in the `accesses` claim of tokens.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::ManageUsers => "manage_users",
            Self::ManageApis => "manage_apis",
            Self::ManageEndpoints => "manage_endpoints",
            Self::ManageGroups => "manage_groups",
            Self::ManageRoles => "manage_roles",
            Self::ManageRoutings => "manage_routings",
            Self::ManageGateway => "manage_gateway",
            Self::ManageSubscriptions => "manage_subscriptions",
            Self::ManageSecurity => "manage_security",
            Self::ManageTiers => "manage_tiers",
            Self::ManageRateLimits => "manage_rate_limits",
            Self::ManageCredits => "manage_credits",
            Self::ManageAuth => "manage_auth",
            Self::ViewAnalytics => "view_analytics",
            Self::ViewLogs => "view_logs",
            Self::ExportLogs => "export_logs",
        }
    }
}

/// What the operator observed of a role.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DoormanRoleStatus {
    /// Generation of the spec this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`, `Programmed` and `Ready`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Option<Vec<Condition>>,
}

/// Checks what the schema can't: empty result means the role is valid.
pub fn validate(spec: &DoormanRoleSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let trimmed = spec.name.trim();
    if trimmed.is_empty() || trimmed.len() != spec.name.len() || spec.name.chars().count() > 50 {
        errors.push(FieldError::invalid("spec.name", "must be 1 to 50 characters without surrounding blanks"));
    }
    if is_admin_role(&spec.name) {
        errors
            .push(FieldError::invalid("spec.name", "the built-in role admin can't be redefined; choose another name"));
    }
    errors
}

/// Whether a role name is the administrator's (reference: platform API, section 3).
pub fn is_admin_role(name: &str) -> bool {
    let name = name.trim();
    name.eq_ignore_ascii_case("admin") || name.eq_ignore_ascii_case("platform admin")
}
