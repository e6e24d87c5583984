//! Certificates for a node's name, from the authority of our own coordinator.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tailwharf_node::acme::{AcmeAccount, AcmeError};

use crate::common::{Tailnet, reached};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_proved_by_a_record_that_the_control_server_sets() {
    let tailnet = Tailnet::start().await;
    let node = tailnet.join("server", "tag:server").await;
    let name = "server.tail1234.ts.net";
    reached(&node, "it may have a certificate", |status| {
        status.cert_domains.iter().any(|domain| domain == name)
    })
    .await;
    let directory = tailnet
        .node_config("", None)
        .control_url
        .join("/acme/directory")
        .unwrap();
    let account = AcmeAccount::generate(directory.clone()).unwrap();
    let certificate = node.certificate(&account, name, None).await.unwrap();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(!chain.is_empty());
    let leaf = chain[0].as_ref();
    assert!(
        leaf.windows(name.len()).any(|part| part == name.as_bytes()),
        "the name is in the certificate"
    );
    assert!(certificate.key_pem.contains("PRIVATE KEY"));

    // The account is the same one again by its key.
    let again = AcmeAccount::from_pkcs8(directory.clone(), account.to_pkcs8()).unwrap();
    node.certificate(&again, &format!("{name}."), None).await.unwrap();

    let refused = node
        .certificate(&account, "other.tail1234.ts.net", None)
        .await
        .unwrap_err();
    assert!(matches!(refused, AcmeError::Name { .. }), "{refused}");
    let nowhere = AcmeAccount::generate(directory.join("/health").unwrap()).unwrap();
    let error = node.certificate(&nowhere, name, None).await.unwrap_err();
    assert!(
        matches!(error, AcmeError::Answer { .. } | AcmeError::Refused { .. }),
        "{error}"
    );
}
