//! The API-server proxy on the device that its pod hosts.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tailwharf_apiproxy::{CertificateSource, Proxy, Settings, on_device, serve};
use tailwharf_proxy::{Device, DeviceService};
use tokio_util::sync::CancellationToken;

/// What the proxy is to be on whichever device.
pub(crate) struct ApiServerProxy {
    settings: Settings,
    certificate: CertificateSource,
    /// The one that serves.
    running: Arc<Mutex<Option<Proxy>>>,
}

impl ApiServerProxy {
    pub(crate) fn new(settings: Settings, certificate: CertificateSource) -> Self {
        Self {
            settings,
            certificate,
            running: Arc::default(),
        }
    }
}

impl DeviceService for ApiServerProxy {
    fn serve(&self, device: Device, end: CancellationToken) -> BoxFuture<'static, ()> {
        let (settings, certificate) = (self.settings.clone(), self.certificate.clone());
        let running = self.running.clone();
        Box::pin(async move {
            let node = device.node().clone();
            let serving = async {
                let proxy = on_device(settings, &node)?;
                *running.lock().unwrap_or_else(PoisonError::into_inner) = Some(proxy.clone());
                let keep = |directory| device.keep_certificate(directory, end.clone());
                serve(proxy, certificate, node, keep, end.clone()).await
            };
            if let Err(error) = serving.await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the API-server proxy cannot serve"
                );
            }
            // Its audit log is closed with it.
            *running.lock().unwrap_or_else(PoisonError::into_inner) = None;
        })
    }

    fn render(&self, out: &mut String) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(proxy) = &*running {
            proxy.render(out);
        }
    }
}
