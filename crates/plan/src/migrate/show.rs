//! A migration, for people.

use std::fmt;

use tailwharf_kube_types::{Parent, ParentKind};

use super::{Awaited, Copy, Device, Leftovers, Migration, Return, Step, Switch};

impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "{number:>3}  {step}")?;
        }
        for obstacle in &self.obstacles {
            writeln!(f, "  !  {obstacle}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepare(Copy { from, to, device, .. }) => {
                write!(f, "copy the state of {device} from Secret {from} to Secret {to}")
            }
            Self::AwaitPool { pool, secrets } => write!(
                f,
                "wait until pool {pool} has a pod that may read {} Secret(s)",
                secrets.len()
            ),
            Self::StopOperator { deployment, replicas } => write!(
                f,
                "stop the operator: scale Deployment {deployment} from {replicas} to 0"
            ),
            Self::Switch(switch) => switch.fmt(f),
            Self::Await(Awaited { identity, device }) => match device {
                Some(device) => write!(f, "wait until Identity {identity} has {device}"),
                None => write!(f, "wait until Identity {identity} has a device"),
            },
            Self::Remove(left) => left.fmt(f),
            Self::Return(back) => back.fmt(f),
            Self::StartOperator { deployment, replicas } => write!(
                f,
                "start the operator: scale Deployment {deployment} from 0 to {replicas}"
            ),
            Self::AwaitProxy { secret } => write!(f, "wait until pod {secret} has its device"),
        }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            parent,
            set,
            replicas,
            copies,
            identities,
        } = self;
        write!(
            f,
            "{}: scale StatefulSet {set} from {replicas} to 0, then tailwharf hosts",
            Shown(parent)
        )?;
        let mut separator = " ";
        for copy in copies {
            write!(f, "{separator}{}", copy.device)?;
            separator = ", ";
        }
        match identities.len().saturating_sub(copies.len()) {
            0 => Ok(()),
            new => write!(f, "{separator}{new} new device(s), since no state is there"),
        }
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            parent,
            sets,
            services,
            secrets,
        } = self;
        let kinds = [("StatefulSet", sets), ("Service", services), ("Secret", secrets)];
        let named = kinds
            .into_iter()
            .flat_map(|(kind, names)| names.iter().map(move |name| format!("{kind} {name}")));
        write!(
            f,
            "{}: remove {}",
            Shown(parent),
            named.collect::<Vec<_>>().join(", ")
        )
    }
}

impl fmt::Display for Return {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            parent,
            identities,
            copies,
            service: _,
            set,
        } = self;
        let devices: Vec<_> = copies
            .iter()
            .map(|copy| format!("{} to Secret {}", copy.device, copy.to))
            .collect();
        write!(
            f,
            "{}: let Identity {} go, give {}",
            Shown(parent),
            identities.join(", "),
            devices.join(", ")
        )?;
        match (set, parent.kind) {
            (Some((set, replicas)), _) => write!(f, "; scale StatefulSet {set} from 0 to {replicas}"),
            (None, ParentKind::Operator) => Ok(()),
            (None, _) => f.write_str("; the Go operator makes a StatefulSet for it"),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.fqdn, self.id)
    }
}

/// A parent in the words of kubectl.
struct Shown<'a>(&'a Parent);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parent {
            kind,
            namespace,
            name,
        } = self.0;
        match kind {
            ParentKind::Service => write!(f, "service {namespace}/{name}"),
            ParentKind::Ingress => write!(f, "ingress {namespace}/{name}"),
            ParentKind::Connector => write!(f, "connector {name}"),
            ParentKind::Operator => f.write_str("the operator's own device"),
            ParentKind::Pool | ParentKind::Nameserver => write!(f, "{} {name}", kind.as_str()),
        }
    }
}
