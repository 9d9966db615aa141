// SAP Cloud SDK: the client that it generates from $metadata; it sends the ETag that it has read, and a change set.
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const { cloudMigration } = require("./sap/cloudMigration/service.js");
const { batch, changeset } = require("./sap/cloudMigration/BatchRequest.js");
const { BASE, TOKEN, COMPANY, RUN } = process.env;
const service = { url: BASE, authentication: "NoAuthentication", headers: { Authorization: `Bearer ${TOKEN}` } };
const { cloudMigrationStatusApi: runs, cloudMigrationCompaniesApi: companies } = cloudMigration();
const all = () => runs.requestBuilder().getAll();
const found = { pages: [] };

found.newest = (await all().top(1).execute(service))[0].id;
found.filtered = (await all().filter(runs.schema.STATUS.equals("Failed")).execute(service)).map((row) => row.runId);
found.expanded = (await runs.requestBuilder().getByKey(RUN).expand(runs.schema.CLOUD_MIGRATION_STATUS_DETAILS).execute(service))
  .cloudMigrationStatusDetails.map((row) => row.tableName);
for (const total = await all().count().execute(service); found.pages.length < total;) {
  found.pages.push(...(await all().top(5).skip(found.pages.length).execute(service)).map((row) => row.runId));
}
let company = await companies.requestBuilder().getByKey(COMPANY).execute(service);
company.replicate = true;
found.patched = (await companies.requestBuilder().update(company).execute(service)).replicate;
company = await companies.requestBuilder().getByKey(COMPANY).execute(service);
company.replicate = false;
const answers = await batch(all().top(2), changeset(companies.requestBuilder().update(company)), companies.requestBuilder().getByKey(COMPANY))
  .execute(service);
found.batches = [[
  [answers[0].httpCode, answers[1].responses[0].httpCode, answers[2].httpCode],
  answers[0].as(runs).length, answers[2].as(companies)[0].replicate,
]];
console.log(JSON.stringify(found));
