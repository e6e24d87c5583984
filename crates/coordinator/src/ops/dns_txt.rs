//! TXT records by which nodes prove their names to a certificate authority.

use std::sync::Arc;

use tailwharf_wire::tailcfg::NodeId;

use super::{Context, Decision, OpError, Operations};
use crate::{
    model::{DnsTxt, Node},
    world::{Change, World},
};

/// TXT records that one node may have: a handful of certificates, each with a record or two.
const TXT_LIMIT: usize = 32;
const TXT_VALUE_LIMIT: usize = 255;

impl Operations {
    /// Stores a TXT record below one of the node's own names, or of a service that it may answer for.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a name that is not the node's, or a value over 255 bytes.
    pub async fn set_dns_txt(&self, id: NodeId, name: String, value: String) -> Result<(), OpError> {
        self.submit(move |world, context| set_dns_txt(world, context, id, &name, value))
            .await
    }

    /// The value of the TXT record with this full name.
    pub fn dns_txt(&self, name: &str) -> Option<String> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.world().txt(&name).map(|record| record.value.clone())
    }
}

fn set_dns_txt(
    world: &World,
    context: &Context,
    id: NodeId,
    name: &str,
    value: String,
) -> Result<Decision<()>, OpError> {
    let node = world.node(id).ok_or_else(|| OpError::not_found("node", id))?;
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if !may_prove(world, context, node, &name) {
        return Err(OpError::Invalid(format!("`{name}` is not a name of this node")));
    }
    if value.len() > TXT_VALUE_LIMIT {
        return Err(OpError::Invalid(format!(
            "a TXT value has {TXT_VALUE_LIMIT} bytes at most"
        )));
    }
    let others = world
        .dns_txt()
        .filter(|record| record.node == id && record.name != name);
    if others.count() >= TXT_LIMIT {
        return Err(OpError::Invalid(format!(
            "a node has {TXT_LIMIT} TXT records at most"
        )));
    }
    let record = DnsTxt {
        name,
        value,
        node: id,
        created: context.now,
    };
    Ok(Decision::new(vec![Change::PutDnsTxt(Arc::new(record))], ()))
}

fn may_prove(world: &World, context: &Context, node: &Node, name: &str) -> bool {
    let Some(domain) = name.strip_prefix("_acme-challenge.") else {
        return false;
    };
    let serves = |service| {
        let choice = world.service_choice(service);
        choice.is_some_and(|choice| choice.candidates.contains(&node.id))
    };
    domain == context.suffix.fqdn(&node.name)
        || node
            .services
            .iter()
            .any(|service| domain == context.suffix.fqdn(service.label()) && serves(service))
}
