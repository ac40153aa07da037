"""Parts of the article: each computes its macros, tables and figures from one folder of results."""
