"""The page for people: plain files that the ingress serves; no build step, nothing from another host."""
