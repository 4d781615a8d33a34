"""The store: etcd, or memory in tests, behind one protocol. Import from the modules inside."""
