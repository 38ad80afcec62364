"""Documents to chunks, vectors, an index and ranked contexts: no Airflow, no JAX."""
