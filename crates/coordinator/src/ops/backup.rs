//! Copies of the store while the coordinator runs.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::oneshot;

use super::{OpError, Operations};
use crate::writer::Message;

impl Operations {
    /// Writes a copy of everything that is stored to a new file. Changes wait meanwhile.
    ///
    /// # Errors
    /// `Store` when the file is there already or cannot be written.
    pub async fn back_up(&self, to: PathBuf) -> Result<(), OpError> {
        let (reply, answered) = oneshot::channel();
        let copied = self.jobs.send(Message::BackUp { to, reply }).await;
        copied.map_err(|_| OpError::Stopped)?;
        let outcome = answered.await.map_err(|_| OpError::Stopped)?;
        outcome.map_err(|error| OpError::Store(Arc::new(error)))
    }
}
