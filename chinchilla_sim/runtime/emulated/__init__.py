"""Nodes and links that this machine emulates: namespaces, cgroups and a switch in user space."""
