"""What the DAGs share: defaults, assets, the failure notice, the approval of a plan."""
