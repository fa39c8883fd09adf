// What container.yml needs, asked while the template is made: `Rules` of CloudFormation do not get past the framework.

const NEEDED = {
  vpcId: 'the VPC it lives in, vpc-…',
  publicSubnets: 'two subnets of the load balancer, comma-separated, in different zones',
  privateSubnets: 'subnets of the containers, comma-separated, whose way out is a NAT gateway',
  certificateArn: "the certificate of your domain, in ACM and in the stack's region",
  supabaseUrl: 'https://<project ref>.supabase.co',
  supabaseKeyArn: 'the ARN of the SSM parameter or secret with the service key; :SUPABASE_KEY:: after it if JSON',
  allowedOrigins: 'the pages that may connect, https://example.com, or * for all',
};

module.exports = async ({ resolveVariable }) => {
  const given = (name, otherwise = '') => resolveVariable(`param:${name}, '${otherwise}'`);
  const container = (await given('container')) || 'off';
  if (!['off', 'registry', 'on'].includes(container)) throw `container=${container}: must be off, registry or on`;
  if (container !== 'on') return { container };

  const missing = [];
  for (const [name, what] of Object.entries(NEEDED)) if (!(await given(name))) missing.push(`${name} (${what})`);
  if (!(await given('containerTag')) && !(await given('containerImage')))
    missing.push('containerTag (of the image you pushed), or containerImage (of one elsewhere)');
  if (!(await given('sessionSecretArn')) && !(await given('supabasePublishableKey')))
    missing.push("sessionSecretArn (of what signs guests' tokens), or supabasePublishableKey (people sign in with Supabase)");
  if ((await given('llmProvider')) === 'openai') {
    if (!(await given('llmModel'))) missing.push('llmModel (for example gpt-4o-mini)');
    if (!(await given('openaiKeyArn')) && !(await given('openaiBaseUrl')))
      missing.push('openaiKeyArn (as supabaseKeyArn, with :OPENAI_API_KEY:: after it), or openaiBaseUrl');
  }
  // A string, not an Error: of that the framework would print the stack.
  if (missing.length) throw `container=on needs --param="name=value" for: ${missing.join('; ')}`;
  return { container };
};
