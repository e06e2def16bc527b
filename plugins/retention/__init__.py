"""The page *Retention* of Airflow's UI."""
