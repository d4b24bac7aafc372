/* grant_serving */ SELECT taskpass_grant_serving($1), taskpass_grant_pruning($1)
